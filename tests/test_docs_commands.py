"""Every command that README and docs show: it parses, the files that it names are in a fresh clone, and what it would start
passes preflight in a built world. The expensive ones really run elsewhere: train, eval and export in test_loop.py and
test_bad_input.py, serve and demo in test_serve.py, search serve and query in test_cli.py."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from loop_fixtures import COLD_START

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1 import config
from megatron_mmsr1.run import preflight

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every line of a shell block, comments and prompts left out."""
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if "<<" in line or line.startswith((" ", "}", "{")):
                    continue  # a document of its own
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append((page.name, [words[0].removeprefix(".venv/bin/"), *words[1:]]))
    return found


ALL = commands()
OURS = [c for c in ALL if c[1][0] == "mmsr1"]


def test_the_pages_show_commands() -> None:
    assert len(OURS) > 15 and {page for page, _ in OURS} >= {"README.md", "search.md", "serving.md"}


@pytest.mark.parametrize(("page", "words"), OURS, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_a_command_parses_and_its_config_is_valid(page: str, words: list[str]) -> None:
    args = [w for w in words[1:] if w not in ("&", "|", ">")]
    parsed = cli.parse(args)
    assert callable(parsed.run)
    if (path := getattr(parsed, "config", None)) and (ROOT / path).is_file():
        config.load(ROOT / path, parsed.override)
    elif path and "/" in path:
        assert not path.startswith("configs/"), f"{page} names {path}, which is not here"


@pytest.mark.parametrize(
    ("page", "words"),
    [c for c in ALL if c[1][0].startswith("./scripts/") or c[1][0] in ("python", "make")],
    ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60],
)
def test_a_script_that_is_named_is_there(page: str, words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python" and words[1] == "-m":
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    else:
        script = ROOT / (words[1] if words[0] == "python" else words[0])
        assert script.is_file()
        if script.suffix == ".sh":
            assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize(
    "words",
    [w for _, w in OURS if w[1] in ("train", "sft", "eval") and len(w) > 2 and "atlas" in w[2]],
    ids=lambda w: " ".join(w),
)
def test_a_run_that_is_shown_passes_preflight_in_a_fresh_clone(words: list[str], atlas_world: Path, tmp_path: Path) -> None:
    """`build/atlas` is the world that the page builds before; nothing else may be needed but what the repository holds, or the
    model that an earlier command trained (`runs/`)."""
    args = cli.parse(words[1:])
    overrides = [*args.override, f"output={tmp_path}/run"]
    cfg = config.load(ROOT / args.config, overrides)
    raw = config.dump(cfg).replace("build/atlas", str(atlas_world))
    raw = raw.replace("path: megatron_mmsr1/atlas/checkpoints/tilted", f"path: {COLD_START}")
    (tmp_path / "run.yaml").write_text(re.sub(r"path: runs/\S+/model", f"path: {COLD_START}", raw))
    cfg = config.load(tmp_path / "run.yaml")
    if words[1] == "eval":
        preflight.evaluate(cfg, engine=not args.policies)
    else:
        {"train": preflight.train, "sft": preflight.sft}[words[1]](cfg)


def test_help_is_asked_of_make() -> None:
    done = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "fast" in done.stdout and "quickstart" in done.stdout
