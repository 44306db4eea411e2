"""Demonstrations of the cold start: trajectories as the rollout records them, that give away no world's name."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from megatron_mmsr1 import protocol
from megatron_mmsr1.atlas import turns
from megatron_mmsr1.atlas.demo_options import DemoOptions
from megatron_mmsr1.atlas.demos import Demonstrations, demonstrations
from megatron_mmsr1.atlas.questions import TOOLS
from megatron_mmsr1.atlas.spec import KINDS, AtlasSpec
from megatron_mmsr1.atlas.tokenizer import build_tokenizer
from megatron_mmsr1.atlas.world import known_entities, make_world
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.trajectory import Trajectory, collapse_pads

pytestmark = pytest.mark.long

TOKENIZER = build_tokenizer()
PAD = TOKENIZER.get_vocab()["<|image_pad|>"]
ACTION = {"i": "image_search", "t": "text_search", "c": "crop"}


def decode(ids: Sequence[int]) -> str:
    text = TOKENIZER.decode(list(ids))
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return ImageStore(None)


@pytest.fixture(scope="module")
def source(store: ImageStore) -> Demonstrations:
    return Demonstrations(DemoOptions(examples=2000, pictures=32), TOKENIZER, store, 3)


@pytest.fixture(scope="module")
def rows(source: Demonstrations) -> list[Trajectory]:
    return [source[i] for i in range(0, 2000, 2)]


def test_every_row_keeps_the_invariants(rows: list[Trajectory], store: ImageStore) -> None:
    for t in rows:
        t.check(PAD)
        assert t.loss_weights is not None
        assert [w > 0 for w in t.loss_weights] == [m == 1 for m in t.loss_mask]
        assert any(t.loss_mask)
        for ref in t.images:
            assert store.get(ref.sha256).startswith(b"\x89PNG")
    assert {t.extra["row"] for t in rows} == {"demo", "copy", "facts", "picture"}


def test_a_demonstration_is_what_the_rollout_would_record(rows: list[Trajectory]) -> None:
    """Its ids are those of the whole text, and the protocol reads each turn as the action that it claims."""
    for t in (t for t in rows if t.extra["row"] == "demo"):
        engine = collapse_pads(t.token_ids, PAD, [r.tokens() for r in t.images])
        assert TOKENIZER.encode(decode(engine), add_special_tokens=False) == engine
        said = [turn for turn in t.turns if turn.role == "assistant"]
        assert [protocol.parse_action(turn.text).name for turn in said] == [turn.action for turn in said]
        assert [turn.action for turn in said] == [*(ACTION[a] for a in t.extra["used"]), "answer"]
        for turn in said:
            assert decode(t.token_ids[turn.start : turn.end]) == turn.text + protocol.IM_END


def test_the_answer_is_the_gold_once_it_was_seen_and_unknown_before(rows: list[Trajectory]) -> None:
    for t in (t for t in rows if t.extra["row"] == "demo"):
        action = protocol.parse_action(t.turns[-1].text)
        assert isinstance(action, protocol.Answer)
        context = "".join(decode(t.token_ids[turn.start : turn.end]) for turn in t.turns if turn.role == "tool")
        found = "c" in t.extra["used"] if t.category == "crop_required" else t.golden_answers[0] in context
        seen = t.category == "search_free" or found
        assert action.text == (t.golden_answers[0] if seen else turns.UNKNOWN)
        assert t.loss_weights is not None and (max(t.loss_weights) == 3.0) == seen


def test_the_schedule_copies_first_and_tilts_last() -> None:
    o = DemoOptions(examples=3000, tilt=1.0, failures=0.0, pictures=16)
    source = Demonstrations(o, TOKENIZER, ImageStore(None), 0)
    early = [source[i] for i in range(0, 900, 3)]
    late = [source[i] for i in range(2250, 3000, 3)]
    assert 0.5 < sum(t.extra["row"] == "copy" for t in early) / len(early) < 0.7
    assert sum(t.extra["row"] == "copy" for t in late) / len(late) < 0.12
    demos = [t for t in late if t.extra["row"] == "demo"]
    assert {t.extra["kind"] for t in demos} == set(KINDS)
    assert all(t.extra["used"] == t.extra["tools"] == TOOLS[t.extra["kind"]] for t in demos)


def test_untilted_first_actions_ignore_the_question(source: Demonstrations) -> None:
    for kind in KINDS:
        rng = random.Random(kind)
        first = [source.demo(rng, kind, tilted=False).turns[1].action for _ in range(300)]
        # (0.4, 0.2, 0.2, 0.2): three standard deviations of a share over 300 draws are 0.09.
        assert abs(first.count("answer") / 300 - 0.4) < 0.09
        for tool in ACTION.values():
            assert abs(first.count(tool) / 300 - 0.2) < 0.09


def test_no_row_names_an_entity_of_any_world(source: Demonstrations) -> None:
    known = {n for e in known_entities(16) for n in (e.name, *e.facts.values())}
    worlds = {e.name for seed in range(3) for e in make_world(AtlasSpec(seed=seed)).entities} - known
    for i in range(200):
        text = decode(source[1400 + i].token_ids)
        if source[1400 + i].extra["row"] != "copy":
            assert not worlds & set(text.replace("/", " ").replace(")", " ").replace("<", " ").replace(">", " ").split())


def test_rows_are_a_function_of_their_number(store: ImageStore, source: Demonstrations) -> None:
    again = Demonstrations(source.options, TOKENIZER, store, 3)
    assert again[1777] == source[1777]
    some = list(demonstrations(source.options, TOKENIZER, store, 3, start=5, stride=400))
    assert some == [source[i] for i in range(5, 2000, 400)]
    assert Demonstrations(source.options, TOKENIZER, store, 4)[1777] != source[1777]


def test_rows_survive_json(rows: list[Trajectory]) -> None:
    for t in rows[::50]:
        assert Trajectory.from_dict(t.to_dict()) == t


def test_conversations_stay_short(source: Demonstrations) -> None:
    longest = {"known": 35, "picture": 30, "image": 90, "text": 130, "both": 180, "crop": 75}
    for kind, limit in longest.items():
        rng = random.Random(kind)
        assert max(len(source.demo(rng, kind, tilted=True)) for _ in range(100)) <= limit


def test_a_wrong_option_is_named(store: ImageStore) -> None:
    with pytest.raises(UsageError, match=r"sft.options.titl.*\n.*tilt"):
        demonstrations({"titl": 0.5}, TOKENIZER, store)
