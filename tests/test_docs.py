"""What the documents say is so: generated pages are fresh, files and links that they name exist, every shipped config loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_mmsr1 import config
from megatron_mmsr1.plugins.seams import seams

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE_BY_RUNNING = ("runs/", "build/", ".venv", "my-model")


def test_configuration_page_is_fresh() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import config_docs

    assert (ROOT / "docs" / "configuration.md").read_text() == config_docs.render(), "run: python scripts/config_docs.py"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    config.load(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t and not t.startswith("#")]
    missing = [t for t in links if not (page.parent / t).exists()]
    named = re.findall(r"`((?:scripts|configs|docs|tests|benchmarks|megatron_mmsr1)/[\w./-]+)`", text)
    missing += [n for n in named if not n.startswith(MADE_BY_RUNNING) and not (ROOT / n).exists()]
    assert not missing


def test_a_part_of_one_s_own_goes_where_its_kind_lies() -> None:
    """Of `FOLDER/NAME.py` and `FOLDER/NAME/` on any page."""
    files = [Path(part.file) for r in seams() for part in r.listed()]
    folders = {f.parent.parent if f.name == "__init__.py" else f.parent for f in files}
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for folder, kinds in re.findall(r"`(megatron_mmsr1/[\w/]+?)(?:/\{([\w,]+)\})?/NAME(?:\.py|/)`", page.read_text()):
            for kind in kinds.split(","):
                assert ROOT / folder / kind in folders, f"{page}: {folder}/{kind}"


def test_no_page_waits_for_a_number() -> None:
    for page in PAGES:
        assert not re.search(r"RESULTS_TABLE|TODO|TBD|\?\?\?", page.read_text()), page


def test_tracked_files_hold_no_secret_and_no_large_file() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    sizes = {n: (ROOT / n).stat().st_size for n in names if n and (ROOT / n).is_file()}
    ships = ("megatron_mmsr1/atlas/checkpoints/", "megatron_mmsr1/maths/checkpoint/")
    checkpoints = sum(s for n, s in sizes.items() if n.startswith(ships))
    assert checkpoints <= 8_000_000, "the cold starts that ship with the package are at most 8 MB"
    assert not [n for n, s in sizes.items() if s > 3_000_000]
