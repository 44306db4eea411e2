"""Which old weights and checkpoints are removed: never the one just written, never one that comes after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.run.weights import prune


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 5), st.data())
def test_the_current_one_stays_with_those_just_before(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int, data: st.DataObject
) -> None:
    parent = tmp_path_factory.mktemp("weights")
    for step in steps:
        (parent / f"v{step:06d}").mkdir()
    current = data.draw(st.sampled_from(sorted(steps)))
    prune(parent, "v*", keep=keep, current=parent / f"v{current:06d}")
    left = {int(p.name[1:]) for p in parent.iterdir()}
    earlier = sorted(s for s in steps if s < current)
    assert left == {s for s in steps if s >= current} | set(earlier[max(0, len(earlier) - keep + 1) :])


def test_after_a_resume_at_an_earlier_step(tmp_path: Path) -> None:
    """Killed after step 9, resumed from the checkpoint of step 4: v000005 is the newest, whatever the names say."""
    for step in (8, 9, 5):
        (tmp_path / f"v{step:06d}").mkdir()
    prune(tmp_path, "v*", keep=1, current=tmp_path / "v000005")
    assert (tmp_path / "v000005").is_dir()
