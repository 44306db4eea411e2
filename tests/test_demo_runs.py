"""Runs for the replay tab: found under their root and nowhere else, in order, and read without trust."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_fixtures import HOSTILE, check_harmless

from demo import replay, runs
from megatron_mmsr1.rollout.dump import write_dump
from megatron_mmsr1.trajectory import ImageRef, Status, ToolCall, ToolStatus, Trajectory


def rollout(
    prompt: str, sample: int, answer: str, reward: float | None, *, searches: int = 0, question: str = "who?"
) -> Trajectory:
    t = Trajectory(prompt, prompt, sample, question, ["bimo"], status=Status.ANSWERED, reward=reward)
    t.append("prompt", [1, 2], "who?")
    for _ in range(searches):
        t.append("tool", [3], "x", tool=ToolCall("text", "q", ToolStatus.OK, results=1))
    text = f"<answer>{answer}</answer>"
    t.append("assistant", [4, 5], text, logprobs=[-0.1, -0.2], action="answer")
    return t


def a_run(directory: Path) -> Path:
    """Learns to answer bimo without a search; p0 is asked at every point, others once."""
    dumps = directory / "rollouts"
    write_dump(dumps, "eval_before", [rollout("p0", 0, "vevu", 0.0, searches=2)], {})
    for step in range(12):
        group = [rollout("p0", n, "bimo" if step > 5 else "vevu", float(step > 5), searches=step < 3) for n in range(4)]
        write_dump(dumps, step, [*group, rollout(f"only-{step}", 0, "x", None)], {})
    write_dump(dumps, "eval_step_000006", [rollout("p0", 0, "bimo", 0.9)], {})
    write_dump(dumps, "eval_after", [rollout("p0", 0, "bimo", 1.0)], {})
    return directory


def index(run: Path) -> replay.Index:
    return [(p, runs.rows(p)) for p in runs.points(run)]


def test_points_come_in_the_order_of_training(tmp_path: Path) -> None:
    titles = [p.title for p in runs.points(a_run(tmp_path / "a"))]
    assert (
        titles[0] == "before training" and titles[-1] == "after training" and titles.index("step 2") < titles.index("step 10")
    )
    assert titles.index("evaluation after step 6") == titles.index("step 6") + 1


def test_a_prompt_is_followed_through_the_run(tmp_path: Path) -> None:
    found = index(a_run(tmp_path / "a"))
    assert [p for _, p in runs.follow(found)] == ["p0"]
    mine = replay.of(found, "p0")
    assert [replay.reward(r) for _, r in mine] == [0.0] * 7 + [1.0, 0.9] + [1.0] * 6
    assert [replay.searching(r) for _, r in mine][:5] == [1.0, 1.0, 1.0, 1.0, 0.0]
    shown = check_harmless(replay.overview(mine, 8) + replay.point(*mine[8], prompt="p0"))
    assert "bimo" in shown.words and "✓" in shown.words and "vevu" in shown.words
    unscored = replay.of(found, "only-3")
    assert replay.reward(unscored[0][1]) is None and "–" in check_harmless(replay.overview(unscored, 0)).words


def test_only_runs_under_the_root_are_found(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    a_run(root / "deep" / "a")
    a_run(outside)
    (root / "link").symlink_to(outside)
    (root / "half").mkdir()
    (root / "half" / "rollouts").symlink_to(outside / "rollouts")
    assert set(runs.find(root)) == {"deep/a"}
    assert runs.find(None) == runs.find(tmp_path / "nowhere") == {}
    assert set(runs.find(root / "deep" / "a")) == {"."}


@pytest.mark.parametrize("name", ["../outside", "/etc", "deep/a/../../../outside", "", None, "deep/a\x00", ".", "deep"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str | None) -> None:
    a_run(tmp_path / "root" / "deep" / "a")
    a_run(tmp_path / "outside")
    assert replay.index_of(tmp_path / "root", name) == [] and replay.index_of(tmp_path / "root", "deep/a")


def test_a_dump_whose_pictures_name_other_files_shows_none(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    (tmp_path / "secret.png").write_bytes(b"secret")
    t = rollout("p", 0, "x", 1.0)
    t.images = [ImageRef(name, (1, 2, 2)) for name in ("../../secret", "0" * 64, "../secret.png", "/etc/passwd")]
    assert runs.pictures(run, t) == {}


def test_a_torn_dump_is_left_out_and_a_new_one_is_read_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    torn = run / "rollouts" / "step_000003.jsonl.zst"
    torn.write_bytes(torn.read_bytes()[:-20])
    by_title = {p.title: r for p, r in index(run)}
    assert by_title["step 3"] == () and by_title["step 4"]
    write_dump(run / "rollouts", 4, [rollout("new", 0, "y", 0.5)], {})
    assert [r.prompt_id for p, rows in index(run) if p.title == "step 4" for r in rows] == ["new"]


def test_a_long_run_is_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POINTS", 5)
    titles = [p.title for p in runs.points(a_run(tmp_path / "a"))]
    assert len(titles) == 5 and titles[0] == "before training" and titles[-1] == "after training"


@pytest.mark.parametrize("words", HOSTILE)
def test_what_rollouts_say_stays_words(tmp_path: Path, words: str) -> None:
    write_dump(tmp_path / "rollouts", 0, [rollout(words, 0, words, 1.0, question=words)], {})
    found = index(tmp_path)
    check_harmless(replay.overview(found, 0) + replay.point(*found[0], prompt=""))
