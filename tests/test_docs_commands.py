"""Every command that a page shows is run, here or in test_docs_story.py, or stands in a list with the reason why not."""

from __future__ import annotations

import re
import shlex
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from doc_commands import ELSEWHERE, MINUTES, ROOT, SECONDS, SERVERS, shown
from doc_place import Place
from test_search_recorded import IDS, QUESTIONS, entry, pickled, rows

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1 import config
from megatron_mmsr1.maths.build import MathsSpec, build
from megatron_mmsr1.run import preflight

SHOWN = shown()


def test_every_command_of_the_pages_is_in_one_list_and_no_list_has_others(capsys: pytest.CaptureFixture[str]) -> None:
    lists = [*SECONDS, *MINUTES, *ELSEWHERE]
    assert len(lists) == len(set(lists))
    assert set(SHOWN) - set(lists) == set(), "say in doc_commands.py how it is run"
    assert set(lists) - set(SHOWN) == set(), "no page shows it any more"
    with capsys.disabled():
        print("\ncommands of the pages that no test runs as they stand:")
        for text, why in ELSEWHERE.items():
            print(f"  {text}  ({', '.join(SHOWN[text])}): {why}")


@pytest.mark.parametrize("text", [t for t in SHOWN if not t.startswith("git")])
def test_what_a_command_names_is_there(text: str) -> None:
    """Also of those that are run: options and files as they are shown, without what the tests add."""
    words = shlex.split(text)
    if words[0] == "mmsr1":
        parsed = cli.parse(words[1:])
        assert callable(parsed.run)
        path = getattr(parsed, "config", None)
        assert path is None or (ROOT / path).is_file() or path.startswith("runs/")  # a run's, which the page has just made
        return
    script = ROOT / (words[1] if words[0] == "python" else words[0])
    assert script.is_file()
    if script.suffix == ".sh":
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize("text", [t for t in SHOWN if re.match(r"mmsr1 (train|sft|eval) ", t)])
def test_a_run_that_is_shown_passes_preflight_in_a_fresh_clone(text: str, atlas_world: Path, tmp_path: Path) -> None:
    """As it stands: nothing is needed but what the repository holds, and the world that a page builds before."""
    args = cli.parse(shlex.split(text)[1:])
    raw = config.dump(config.load(ROOT / args.config, [*args.override, f"output={tmp_path}/run"]))
    raw = raw.replace("build/atlas", str(atlas_world))
    if "build/maths" in raw:
        build(MathsSpec(train_questions=8, heldout_questions=4), tmp_path / "maths", model=False)
        raw = raw.replace("build/maths", str(tmp_path / "maths"))
    raw = raw.replace("path: megatron_mmsr1/", f"path: {ROOT}/megatron_mmsr1/")
    (tmp_path / "run.yaml").write_text(raw)
    cfg = config.load(tmp_path / "run.yaml")
    if args.run.__name__ == "_eval":
        preflight.evaluate(cfg, engine=not args.policies)
    else:
        {"_train": preflight.train, "_sft": preflight.sft}[args.run.__name__](cfg)


def test_commands_of_seconds(tmp_path: Path) -> None:
    place = Place(tmp_path)
    # Image results as FVQA has them, for the command that converts them.
    pickled(tmp_path, {IDS[1]: entry(["by URL"], ["https://thumbnails.test/1"])}).rename(tmp_path / "cache.pkl")
    rows(tmp_path, IDS, QUESTIONS).rename(tmp_path / "fvqa_train.parquet")
    with ExitStack() as stack:
        url = ""
        for text, (added, says) in SECONDS.items():
            if text.startswith(SERVERS):
                url = stack.enter_context(place.serving(text, added, says))
            else:
                place.run(text, added.format(url=url), says)


def test_help_is_asked_of_make() -> None:
    done = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "fast" in done.stdout and "quickstart" in done.stdout
    assert all(re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in ("test", "slow", "docs"))
