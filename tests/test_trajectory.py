"""The structure that flows: what is sampled is what is trained, and nothing is lost on disk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data import flat
from megatron_mmsr1.trajectory import (
    BUFFERS,
    UNSAMPLED,
    ImageRef,
    Status,
    ToolCall,
    ToolStatus,
    Trajectory,
    buffer,
    collapse_pads,
    expand_pads,
)

PAD = 7
grid = st.tuples(st.just(1), st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 4).map(lambda n: 2 * n))
image = st.builds(ImageRef, st.text("0123456789abcdef", min_size=4, max_size=4), grid)
words = st.lists(st.integers(8, 50), max_size=5)
call = st.builds(
    ToolCall,
    st.sampled_from(["image", "text"]),
    st.text(max_size=5),
    st.sampled_from(ToolStatus),
    st.floats(0, 9),
    st.integers(0, 5),
)


@st.composite
def trajectories(draw) -> Trajectory:
    t = Trajectory(
        "p", "g", draw(st.integers(0, 7)), draw(st.text(max_size=8)), draw(st.lists(st.text(max_size=4), max_size=2))
    )
    for role in draw(st.lists(st.sampled_from(["prompt", "assistant", "tool"]), max_size=6)):
        ids, pictures = draw(words), []
        if role == "assistant":
            logprobs = draw(st.lists(st.floats(-9, 0, width=32), min_size=len(ids), max_size=len(ids)))
            versions = draw(st.none() | st.just([3] * len(ids)))
            t.append(role, ids, "text", logprobs=logprobs, weight_versions=versions, action="answer", seconds=0.5)
            continue
        for picture in draw(st.lists(image, max_size=2)):
            ids = [*ids, *[PAD] * picture.tokens(), *draw(words)]
            pictures.append(picture)
        t.append(role, ids, "text", images=pictures, tool=draw(call) if role == "tool" else None)
    t.status = draw(st.sampled_from(Status))
    t.reward = draw(st.none() | st.floats(0, 1))
    weights = draw(st.none() | st.just([0.5] * len(t)))
    t.loss_weights = None if weights is None else buffer("loss_weights", weights)
    return t


@given(trajectories())
def test_whatever_is_appended_passes_the_check(t: Trajectory) -> None:
    t.check(PAD)


@given(trajectories())
def test_the_mask_covers_assistant_turns_and_nothing_else(t: Trajectory) -> None:
    sampled = [t.token_ids[i] for i in range(len(t)) if t.loss_mask[i]]
    assert sampled == [i for turn in t.turns if turn.role == "assistant" for i in t.token_ids[turn.start : turn.end]]
    for i in range(len(t)):
        if not t.loss_mask[i]:
            assert t.logprobs[i] == 0
            assert t.weight_versions[i] == UNSAMPLED
    assert PAD not in sampled


@given(trajectories())
def test_json_gives_an_equal_trajectory_back(t: Trajectory) -> None:
    back = Trajectory.from_dict(json.loads(json.dumps(t.to_dict())))
    assert back == t
    assert all(isinstance(c.status, ToolStatus) for c in back.tool_calls)
    assert isinstance(back.status, Status)


@given(st.lists(trajectories(), max_size=4))
def test_one_buffer_a_field_gives_equal_trajectories_back(many: list[Trajectory]) -> None:
    message = flat.pack(many)
    assert flat.unpack(message) == many
    if any(len(t) for t in many):
        with pytest.raises(ValueError, match="bytes of buffers"):
            flat.unpack(message[:-1])


@given(trajectories())
def test_an_outline_knows_what_metrics_ask_and_holds_no_token(t: Trajectory) -> None:
    o = t.outline()
    assert (len(o), o.sampled_tokens, o.status, o.reward) == (len(t), sum(t.loss_mask), t.status, t.reward)
    assert (o.searched, o.infrastructure_failure, o.tool_calls) == (t.searched, t.infrastructure_failure, t.tool_calls)
    assert not any(getattr(o, name) for name in BUFFERS) and not any(turn.text for turn in o.turns)


@given(trajectories())
def test_a_token_takes_thirteen_bytes(t: Trajectory) -> None:
    names = [n for n in BUFFERS if n != "loss_weights"]
    assert sum(memoryview(getattr(t, n)).nbytes for n in names) == 13 * len(t)


@given(trajectories())
def test_engines_view_expands_to_the_trainers(t: Trajectory) -> None:
    pads = [i.tokens() for i in t.images]
    engine = t.engine_ids(PAD)
    assert engine.count(PAD) == len(t.images)
    assert len(engine) == len(t) - sum(pads) + len(pads)
    assert expand_pads(engine, PAD, pads) == t.token_ids.tolist()


@given(st.lists(st.sampled_from([PAD, 1, 2]), max_size=20), st.lists(st.integers(1, 5), min_size=20, max_size=20))
def test_collapse_undoes_expand_even_for_pads_side_by_side(engine: list[int], sizes: list[int]) -> None:
    pads = sizes[: engine.count(PAD)]
    assert collapse_pads(expand_pads(engine, PAD, pads), PAD, pads) == engine


@pytest.mark.parametrize(
    ("ids", "pads"),
    [
        ([PAD], []),
        ([1], [1]),
        ([PAD, PAD], [1]),
        ([PAD], [2]),
        ([PAD, 1, PAD], [2]),
        ([PAD, PAD, 1, PAD], [2, 2]),
        ([PAD], [0]),
    ],
)
def test_runs_that_do_not_match_are_refused(ids: list[int], pads: list[int]) -> None:
    with pytest.raises(ValueError, match="image"):
        collapse_pads(ids, PAD, pads)


def test_expanding_with_the_wrong_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="2 images for 1 pads"):
        expand_pads([PAD], PAD, [4, 4])


def good() -> Trajectory:
    t = Trajectory("q1", "q1", 2, "?", ["x"])
    t.append("prompt", [1, PAD, PAD, 2], "p", images=[ImageRef("ab", (1, 2, 4))])
    t.append("assistant", [3, 4], "a", logprobs=[-0.5, -0.25], weight_versions=[1, 1])
    return t


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.loss_mask.pop(), "loss_mask has 5 of 6"),
        (lambda t: t.logprobs.append(0.0), "logprobs has 7 of 6"),
        (lambda t: t.weight_versions.pop(), "weight_versions has 5"),
        (lambda t: setattr(t, "loss_weights", buffer("loss_weights", [1.0])), "loss_weights has 1"),
        (lambda t: t.loss_mask.__setitem__(0, 1), "loss mask disagrees with prompt turn at 0"),
        (lambda t: t.loss_mask.__setitem__(5, 0), "loss mask disagrees with assistant turn at 4"),
        (lambda t: t.turns.pop(), "turns end at 4, tokens at 6"),
        (lambda t: setattr(t.turns[1], "start", 5), "turn at 5 does not follow 4"),
        (lambda t: t.images.clear(), "2 image pads for 0"),
        (lambda t: t.token_ids.__setitem__(1, 1), "1 image pads for 2"),
    ],
)
def test_the_check_names_what_broke(damage, says: str) -> None:
    t = good()
    t.check(PAD)
    damage(t)
    with pytest.raises(ValueError, match=says) as e:
        t.check(PAD)
    assert "q1#2" in str(e.value)


def test_nothing_unsampled_can_be_trained_on() -> None:
    t = good()
    before = t.to_dict()
    cases: list[dict[str, Any]] = [{}, {"logprobs": [-1.0]}, {"logprobs": [-1.0, -1.0], "weight_versions": [1]}]
    for wrong in cases:
        with pytest.raises(ValueError, match="assistant turn of 2 tokens"):
            t.append("assistant", [5, 6], "x", **wrong)
    with pytest.raises(ValueError, match="role 'asistant'"):
        t.append("asistant", [5], "x")
    assert t.to_dict() == before  # a refused turn leaves no trace


def test_what_the_model_did_and_what_failed_under_it() -> None:
    t = good()
    assert not t.searched
    assert t.assistant_texts == ["a"]
    t.append("assistant", [3], "s", logprobs=[-1.0], action="text_search")
    assert t.searched
    t.status = Status.ANSWERED
    for status in ToolStatus:
        t.turns = t.turns[:3]
        t.append("tool", [], "", tool=ToolCall("text", "q", status))
        expected = status in (ToolStatus.TIMEOUT, ToolStatus.RATE_LIMITED, ToolStatus.UPSTREAM_ERROR, ToolStatus.BUDGET)
        assert t.infrastructure_failure == expected
    t.turns = t.turns[:3]
    t.status = Status.ENGINE_ERROR
    assert t.infrastructure_failure


def test_tokens_of_an_image() -> None:
    assert ImageRef("x", (1, 4, 6)).tokens() == 6
    assert ImageRef("x", (1, 4, 6)).tokens(merge_size=1) == 24
