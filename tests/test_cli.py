"""The command: every verb explains itself, and every end has its exit code and its sentence."""

from __future__ import annotations

import argparse
import errno
import json
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.http import answers
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import Command, Service

MMSR1 = [sys.executable, "-m", "megatron_mmsr1.cli"]


def verbs(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Each by its name; an alias, which argparse lists behind it, is the same verb."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield path
    for group in groups:
        names = {child: name for name, child in reversed(group.choices.items())}
        for child, name in names.items():
            yield from verbs(child, (*path, name))


ALL = sorted(verbs(cli.build_parser()))


def test_the_verbs_are_there() -> None:
    single = ["train", "sft", "eval", "export", "report", "watch", "doctor", "serve", "demo"]
    pairs = ["search serve", "search query", "atlas build", "atlas inspect", "prompts import", "checkpoints verify"]
    assert {(v,) for v in single} | {tuple(p.split()) for p in pairs} <= set(ALL)


@pytest.mark.parametrize("verb", ALL, ids=" ".join)
def test_help_has_one_example_that_parses(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main([*verb, "--help"])
    assert e.value.code == 0
    text = capsys.readouterr().out
    assert text.count("example:") == 1
    example = shlex.split(text.partition("example:")[2].strip().splitlines()[0])
    assert example[: 1 + len(verb)] == ["mmsr1", *verb]
    assert callable(cli.parse(example[1:]).run)


def test_an_alias_is_its_verb() -> None:
    assert cli.parse(["checkpoint", "list", "runs/a"]).run is cli.parse(["checkpoints", "list", "runs/a"]).run


def test_overrides_may_stand_on_either_side_of_a_flag() -> None:
    args = cli.parse(["eval", "c.yaml", "a.b=1", "--policies", "c.d=2"])
    assert (args.override, args.policies) == (["a.b=1", "c.d=2"], True)


@pytest.mark.parametrize("argv", [["train"], ["eval", "c.yaml", "--polices"], ["report"], ["no-such-verb"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    assert "usage: mmsr1" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["search"], ["atlas"], ["prompts"]])
def test_a_command_or_a_group_alone_shows_its_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(" ".join(["usage: mmsr1", *argv])) and "verbs:" in shown.out and shown.err == ""


def test_only_what_must_be_given_is_called_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert "required: CONFIG\n" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-1", "http", "65536"])
def test_a_port_that_is_none_is_refused_by_the_parser(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["search", "serve", "corpus=x", f"--port={port}"])
    assert e.value.code == 2 and "is no port" in capsys.readouterr().err


def mmsr1(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MMSR1, *argv], capture_output=True, text=True, check=False, cwd=cwd)


def test_a_misspelt_key_is_named_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {path: m}\ntrain: {stepz: 3}\n")
    done = mmsr1("train", str(tmp_path / "c.yaml"))
    assert done.returncode == 2 and done.stdout == ""
    assert "train.stepz: did you mean steps?" in done.stderr
    done = mmsr1("search", "serve", "corpos=x")
    assert done.returncode == 2 and "did you mean corpus?" in done.stderr


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "none.yaml"], "no config at none.yaml"),
        (["report", "no-run"], "nothing at no-run"),
        (["report", "."], "no config.yaml"),
        (["export", "no-run", "out"], "nothing at no-run"),
        (["atlas", "inspect", "no-world"], "nothing at no-world"),
        (["atlas", "build", "out", "entitees=5"], "entities"),
        (["atlas", "inspect", "."], "`mmsr1 atlas build .` makes one"),
        (["search", "serve"], "corpus=DIRECTORY"),
        (["search", "query"], "give a text, or --image"),
        (["search", "query", "--image", "none.png"], "nothing at none.png"),
    ],
)
def test_bad_input_is_2_and_says_what_to_do(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def raising(error: BaseException) -> object:
    def verb(_: argparse.Namespace) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("no such key"), 2, "mmsr1: no such key"),
        (RunError("the engine died"), 1, "mmsr1: the engine died"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_doctor", raising(error))
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied: name another path"),
        (FileExistsError(errno.EEXIST, "File exists", "world"), 2, "world: File exists"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "runs/x: No space left on device: make room"),
    ],
)
def test_a_path_that_cannot_be_used_is_no_defect_of_ours(
    error: OSError, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_doctor", raising(error))
    monkeypatch.delenv("MMSR1_DEBUG", raising=False)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert says in shown and "should not have happened" not in shown


def test_a_world_is_not_built_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(["atlas", "build", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), (["--no-such-flag"], 2)])
def test_the_ranks_program_explains_itself(argv: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", RANKS, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == code and "should not" not in done.stderr and "Traceback" not in done.stderr
    assert "usage: ranks" in done.stdout + done.stderr


# As megatron_mmsr1.train runs, without what it imports.
RANKS = """
import argparse
from megatron_mmsr1.errors import exit_with_message
exit_with_message(lambda: argparse.ArgumentParser(prog="ranks").parse_args())
"""


def test_a_defect_leaves_its_traceback_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: argparse.Namespace) -> None:
        args.output = str(tmp_path)
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(cli, "_doctor", broken)
    monkeypatch.delenv("MMSR1_DEBUG", raising=False)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().err
    [path] = tmp_path.glob("mmsr1-error-*.txt")
    assert str(path) in shown and "ZeroDivisionError: by nothing" in shown and "Traceback" not in shown
    assert "Traceback" in path.read_text() and "in broken" in path.read_text()
    monkeypatch.setenv("MMSR1_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_a_reader_that_leaves_early_is_no_defect() -> None:
    done = subprocess.run(
        f"{sys.executable} -m megatron_mmsr1.cli --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: mmsr1") and done.stderr == ""


# ---------------------------------------------------------------------------------------------------- verbs that run here
@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    d = tmp_path_factory.mktemp("corpus")
    pages = [("velo", "Velo", "The Velo river ends in the sea of Marn."), ("dorn", "Dorn", "Dorn is a town of millers.")]
    rows = [
        {"id": i, "url": f"https://atlas.test/{i}", "title": t, "html": f"<html><body><h1>{t}</h1><p>{s}</p></body></html>"}
        for i, t, s in pages
    ]
    (d / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (d / "images").mkdir()
    for i, colour in (("velo", (200, 30, 30)), ("dorn", (20, 60, 200))):
        Image.new("RGB", (56, 56), colour).save(d / "images" / f"{i}.png")
    images = [{"id": i, "title": t, "url": f"https://atlas.test/{i}", "file": f"images/{i}.png"} for i, t, _ in pages]
    (d / "images.jsonl").write_text("".join(json.dumps(r) + "\n" for r in images))
    return d


def test_serve_and_query(corpus: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [*MMSR1, "search", "serve", f"corpus={corpus}", "--port", str(port)]
    ready = {"url": url, "ready": lambda url: answers(f"{url}/healthz")}
    with Service(Command(name="search", argv=argv, log=tmp_path / "search.log", grace_s=5, **ready)).start():
        found = mmsr1("search", "query", "Where does the Velo river end?", "--url", url)
        assert found.returncode == 0, found.stderr
        assert "https://atlas.test/velo" in found.stdout and "Marn" in found.stdout
        seen = mmsr1("search", "query", "--image", str(corpus / "images" / "dorn.png"), "-k", "1", "--url", url)
        assert seen.returncode == 0 and seen.stdout.startswith("1. Dorn")
        taken = mmsr1("search", "serve", f"corpus={corpus}", "--port", str(port))
        assert taken.returncode == 1 and str(port) in taken.stderr
    gone = mmsr1("search", "query", "anything", "--url", url)
    assert gone.returncode == 1 and url in gone.stderr


def test_ctrl_c_ends_a_server_quietly(corpus: Path) -> None:
    argv = [*MMSR1, "search", "serve", f"corpus={corpus}", "--port", str(free_port())]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            assert "searching" in server.stdout.readline()
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


def test_import_of_prompts_executes_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(tmp_path / "executed"), "w"))

    names = ("first", "image", "text")
    for name, value in zip(names, ("Look:\n<image> ", "Found pictures.\n", "Found pages.\n"), strict=True):
        (tmp_path / name).write_bytes(pickle.dumps(value))
    argv = ["prompts", "import", *names, "--out", "prompts.yaml"]
    done = mmsr1(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "protocol.prompts=prompts.yaml" in done.stdout
    (tmp_path / "image").write_bytes(pickle.dumps(Evil()))
    done = mmsr1(*argv, cwd=tmp_path)
    assert done.returncode == 2 and "image" in done.stderr
    assert not (tmp_path / "executed").exists()
