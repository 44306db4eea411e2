"""The contract of an engine (`rollout/engines/base.py`): run these on your own.

Each function takes an `EngineUnderTest` and raises AssertionError with the rule that is broken. They change its weights.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.engines.base import Control, Engine
from megatron_mmsr1.rollout.generation import EngineError, Generation


@dataclass(frozen=True)
class EngineUnderTest:
    """`url` serves `first`; `second` is a checkpoint of the same model with other weights (one safetensors file each).
    `words`: ids that may be a prompt, `pad`: the id of a picture's pad, `picture`: an encoded picture of `picture_tokens`."""

    engine: Engine
    url: str
    first: Path
    second: Path
    words: Sequence[int]
    pad: int
    picture: bytes
    picture_tokens: int

    @property
    def control(self) -> Control:
        return self.engine.control(self.url)


_versions = itertools.count(100)


def _turn(e: EngineUnderTest, *, ids: Sequence[int] = (), images: Sequence[bytes] = (), **options: Any) -> Generation:
    """One turn through a client of its own."""

    async def sample() -> Generation:
        client = e.engine.client([e.url], retries=0, stop_ids=options.pop("stop_ids", ()))
        try:
            defaults: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "seed": 1}
            return await client.generate(ids or e.words, images, **{**defaults, **options})
        finally:
            await client.close()

    return asyncio.run(sample())


def a_turn_has_ids_logprobs_and_a_version(e: EngineUnderTest) -> None:
    version = next(_versions)
    e.control.load(e.first, version)
    g = _turn(e)
    assert len(g.token_ids) == len(g.logprobs) == 8, "as many ids and log-probs as were asked for"
    assert all(x <= 0 for x in g.logprobs), "natural logarithms of probabilities"
    assert (g.finish, g.weight_version) == ("length", version)


def the_prompt_is_counted_with_its_pictures_expanded(e: EngineUnderTest) -> None:
    g = _turn(e, ids=[*e.words, e.pad, *e.words], images=[e.picture])
    assert g.prompt_tokens is None or g.prompt_tokens == 2 * len(e.words) + e.picture_tokens


def a_seed_decides_what_is_sampled(e: EngineUnderTest) -> None:
    one, two, other = (_turn(e, seed=s, max_new_tokens=16) for s in (7, 7, 8))
    assert one.token_ids == two.token_ids, "the same seed, the same tokens"
    assert one.token_ids != other.token_ids, "another seed, other tokens"


def banned_ids_are_never_sampled_and_left_out_of_the_normaliser(e: EngineUnderTest) -> None:
    """With the best token (probability p1) banned, the second best has p2 / (1 - p1), sampled or taken."""
    best = _turn(e, temperature=0, max_new_tokens=1)
    second = _turn(e, temperature=0, max_new_tokens=1, banned_ids=best.token_ids)
    assert second.token_ids != best.token_ids, "a banned id was taken"
    sampled = [_turn(e, seed=s, max_new_tokens=1, banned_ids=best.token_ids) for s in range(40)]
    again = [g.logprobs[0] for g in sampled if g.token_ids == second.token_ids]
    assert not {i for g in sampled for i in g.token_ids} & set(best.token_ids), "a banned id was sampled"
    assert all(abs(x - second.logprobs[0]) < 1e-4 for x in again), "one normaliser at temperature 1 and 0"
    free = [_turn(e, seed=s, max_new_tokens=1) for s in range(40)]
    p2 = {g.logprobs[0] for g in free if g.token_ids == second.token_ids}
    expected = [x - math.log1p(-math.exp(best.logprobs[0])) for x in p2]  # p2 / (1 - p1)
    assert all(abs(x - second.logprobs[0]) < 1e-4 for x in expected), "what is left must be normalised without the banned id"


def a_stop_id_ends_the_turn_and_stays_in_it(e: EngineUnderTest) -> None:
    free = _turn(e, temperature=0)
    g = _turn(e, temperature=0, stop_ids=[free.token_ids[2]])
    at = free.token_ids.index(free.token_ids[2])
    assert (g.finish, g.token_ids) == ("stop", free.token_ids[: at + 1])


def tokens_are_told_as_they_come(e: EngineUnderTest) -> None:
    told: list[int] = []
    g = _turn(e, on_tokens=told.extend)
    assert told == g.token_ids, "each id once, in order"


def a_turn_that_the_model_cannot_take_is_refused_at_once(e: EngineUnderTest) -> None:
    try:
        _turn(e, ids=list(e.words) * 10_000)
    except EngineError as error:
        assert not error.retryable and e.url in str(error)
    else:
        raise AssertionError("a prompt beyond the model's context was taken")


def a_load_changes_weights_version_and_checksum_and_back(e: EngineUnderTest) -> None:
    seen = []
    for path in (e.first, e.second, e.first):
        version = next(_versions)
        e.control.load(path, version)
        assert e.control.version() == version and e.control.served().version == version
        seen.append((_turn(e, temperature=0).logprobs, e.control.checksum()))
    assert seen[0] == seen[2], "the same weights, the same answers"
    assert seen[0][0] != seen[1][0], "other weights, other answers"
    assert not seen[0][1] or seen[0][1] != seen[1][1], "other weights, another checksum"


def tensors_sent_are_as_good_as_a_load(e: EngineUnderTest) -> None:
    c = e.control
    c.load(e.second, next(_versions))
    expected = _turn(e, temperature=0).logprobs, c.checksum()
    c.load(e.first, next(_versions))
    version = next(_versions)
    tensors = sorted(load_file(e.second / "model.safetensors").items())
    c.pause("abort")
    c.begin(version)
    for i in range(0, len(tensors), 7):
        c.send(tensors[i : i + 7])
    c.end(version)
    c.resume()
    assert c.version() == version
    assert c.checksum() == expected[1], "the same tensors, the same checksum"
    # The same numbers elsewhere in memory may be summed in another order.
    assert all(abs(a - b) < 1e-4 for a, b in zip(_turn(e, temperature=0).logprobs, expected[0], strict=True))


def memory_given_back_is_taken_again(e: EngineUnderTest) -> None:
    c = e.control
    what: tuple[Literal["weights", "kv_cache"], ...] = ("weights", "kv_cache")
    c.load(e.first, next(_versions))
    before = _turn(e, temperature=0).logprobs
    c.pause("abort")
    try:
        c.release(what)
    except RunError as error:
        assert e.url in str(error), "an engine that cannot give memory back says who it is"
    for _ in range(2):  # the second time nothing was given back, as after a restart
        c.reclaim(what)
    version = next(_versions)
    c.load(e.first, version)
    c.resume()
    assert c.version() == version and _turn(e, temperature=0).logprobs == before, "the same weights, the same answers"


def an_update_of_the_tower_changes_what_is_seen(e: EngineUnderTest) -> None:
    """A picture seen before must be seen with the new tower: no cache of features survives an update."""
    ids = [*e.words, e.pad, *e.words]

    def look() -> list[float]:
        return _turn(e, ids=ids, images=[e.picture], temperature=0, max_new_tokens=4).logprobs

    c = e.control
    c.load(e.second, next(_versions))
    c.load(e.first, next(_versions))
    old = look()
    held = {n: t for n, t in load_file(e.second / "model.safetensors").items() if "visual" in n}
    assert held, "the second checkpoint has a tower"
    version = next(_versions)
    c.pause("abort")
    c.begin(version)
    c.send(sorted(held.items()))
    for n, t in load_file(e.first / "model.safetensors").items():
        if "visual" not in n:
            c.send([(n, t)])
    c.end(version)
    c.resume()
    assert look() != old, "the picture still has the features of the old tower"


def a_paused_engine_samples_nothing(e: EngineUnderTest) -> None:
    async def run() -> Generation:
        client = e.engine.client([e.url], retries=0)
        e.control.pause("abort")
        try:
            turn = asyncio.ensure_future(client.generate(e.words, [], max_new_tokens=4, temperature=1.0, seed=1))
            done, _ = await asyncio.wait([turn], timeout=2.0)
            assert not done, "a turn ended while the engine was paused"
        finally:
            await asyncio.to_thread(e.control.resume)
        try:
            return await asyncio.wait_for(turn, 60)
        finally:
            await client.close()

    assert len(asyncio.run(run()).token_ids) == 4


def a_bad_checkpoint_is_an_error_that_names_the_engine(e: EngineUnderTest, empty: Path) -> None:
    """What it holds after that is unknown; a load of whole weights makes it known again."""
    try:
        e.control.load(empty, next(_versions))
    except RunError as error:
        assert e.url in str(error)
    else:
        raise AssertionError("a directory without weights was loaded")
    a_load_changes_weights_version_and_checksum_and_back(e)


CONTRACT: tuple[Callable[[EngineUnderTest], None], ...] = (
    a_turn_has_ids_logprobs_and_a_version,
    the_prompt_is_counted_with_its_pictures_expanded,
    a_seed_decides_what_is_sampled,
    banned_ids_are_never_sampled_and_left_out_of_the_normaliser,
    a_stop_id_ends_the_turn_and_stays_in_it,
    tokens_are_told_as_they_come,
    a_turn_that_the_model_cannot_take_is_refused_at_once,
    a_load_changes_weights_version_and_checksum_and_back,
    tensors_sent_are_as_good_as_a_load,
    memory_given_back_is_taken_again,
    an_update_of_the_tower_changes_what_is_seen,
    a_paused_engine_samples_nothing,
)
