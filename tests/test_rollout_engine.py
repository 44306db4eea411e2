"""The client against a real SGLang server: what goes in, what comes out, and what its log-probs mean."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
import tiny_checkpoint
import torch
from rollout_fixtures import LIMITS, picture

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.images import canonicalize, pixel_values
from megatron_mmsr1.rollout.engine import EngineClient, EngineError
from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire
from megatron_mmsr1.trajectory import expand_pads

TOKENIZER = tiny_checkpoint.tokenizer()
BANNED = protocol.banned_ids(TOKENIZER)
START, PAD, END = (TOKENIZER.convert_tokens_to_ids(t) for t in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
STOP = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
PNG = [canonicalize(picture(i), **LIMITS) for i in range(4)]
# Minutes of sampling, which only an abort ends.
ENDLESS = {"max_new_tokens": 4000, "banned_ids": [*BANNED, STOP, TOKENIZER.convert_tokens_to_ids("<|endoftext|>")]}


@pytest.fixture
async def client(engine):
    client = EngineClient([engine.url], SGLangWire(), timeout_s=60, retries=0, stop_ids=[STOP])
    yield client
    await client.close()


def words(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(200), k=n)


def shown(image: int) -> list[int]:
    return [START, PAD, END]


async def sample(client, ids, images=(), **options):
    defaults = {"max_new_tokens": 16, "temperature": 1.0, "seed": 1, "banned_ids": BANNED}
    return await client.generate(ids, images, **{**defaults, **options})


async def test_ids_in_are_ids_out_over_three_turns_with_pictures(client, weights):
    """The engine counts what the trainer would: one pad becomes t*h*w/4 = 4 tokens for a 56x56 picture."""
    version = weights("random")
    ids, pads, images, seen = [], [], [], []
    for turn in range(3):
        ids += [*words(turn, 20), *shown(turn), *words(turn + 10, 5)]
        images.append(PNG[turn].png)
        pads.append(4)
        g = await sample(client, ids, images, seed=turn)
        assert g.prompt_tokens == len(expand_pads(ids, PAD, pads))
        assert len(g.token_ids) == len(g.logprobs) and g.weight_version == version
        seen.append((g.cached_tokens, len(ids)))
        ids = ids + g.token_ids
    # A turn finds all of the turn before it in the cache, but for its last sampled token.
    assert seen[0][0] == 0 and all(now[0] >= before[1] + 3 for before, now in itertools.pairwise(seen))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_transformers_without_the_banned_ids(client, weights, checkpoints, temperature):
    """log_softmax((logits + ban) / temperature) of the trainer's view: the contract that the loss relies on."""
    weights("random")
    ids = [*words(1, 20), *shown(0), *words(2, 20), *shown(1), *words(3, 10), *shown(2), *words(4, 5)]
    # Canonical pictures of several shapes: neither the engine's processor nor ours may resize them again.
    images = [canonicalize(picture(9, size), **LIMITS) for size in ((30, 40), (100, 131), (500, 90))]
    g = await sample(client, ids, [i.png for i in images], max_new_tokens=64, temperature=temperature)
    whole = torch.tensor([expand_pads(ids, PAD, [h * w // 4 for _, h, w in (i.grid_thw for i in images)]) + g.token_ids])
    assert g.prompt_tokens == whole.shape[1] - len(g.token_ids)
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoints["random"]).eval()
    grids = torch.tensor([i.grid_thw for i in images])
    pixels = torch.cat([torch.from_numpy(pixel_values(i.png)) for i in images])
    with torch.no_grad():
        logits = model(
            input_ids=whole, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=(whole == PAD).int()
        ).logits[0, -len(g.token_ids) - 1 : -1]
    logits[:, BANNED] = -torch.inf
    expected = (logits / temperature).log_softmax(-1)[torch.arange(len(g.token_ids)), torch.tensor(g.token_ids)]
    assert (expected - torch.tensor(g.logprobs)).abs().max() < 1e-4


async def test_pictures_are_seen(client, weights):
    weights("random")
    ids = [*words(1, 10), *shown(0), *words(2, 10)]
    a, b = [await sample(client, ids, [PNG[i].png], temperature=0) for i in (0, 1)]
    assert a.logprobs != b.logprobs


async def test_banned_ids_are_never_sampled(client, weights):
    """Under these weights a line break is followed by `<|image_pad|>` with probability near 1."""
    weights("pads")
    newline = TOKENIZER.encode("\n", add_special_tokens=False)
    free = await sample(client, newline, max_new_tokens=1, banned_ids=[])
    assert free.token_ids == [PAD] and free.logprobs[0] > -0.1
    turns = await asyncio.gather(*[sample(client, newline, seed=s, max_new_tokens=24) for s in range(32)])
    assert not {i for g in turns for i in g.token_ids} & set(BANNED)
    # What is left is normalised without them: near 1/315 each, not 1/315 of what the pad left over.
    assert all(-9 < g.logprobs[0] < -3 for g in turns)


async def test_a_turn_stops_at_its_end_token_and_keeps_it(client, weights):
    weights("chain")
    g = await sample(client, TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False), seed=3)
    assert (g.finish, g.token_ids[-1], g.token_ids.count(STOP)) == ("stop", STOP, 1)
    g = await sample(client, TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False), seed=3, max_new_tokens=2)
    assert (g.finish, len(g.token_ids)) == ("length", 2)


async def test_seeds_decide_whatever_else_is_in_the_batch(client, weights):
    """Weights, prompt and seed give the same tokens alone, together, among strangers and after a flush."""
    version = weights("random")
    asked = [([*words(i, 10 + i), *shown(i), *words(i + 50, 10)], [PNG[i % 4].png], i) for i in range(24)]
    alone = [await sample(client, ids, images, seed=s) for ids, images, s in asked]
    strangers = [sample(client, words(1000 + i, 5 + i), seed=i, max_new_tokens=8 + i) for i in range(24)]
    mixed = (await asyncio.gather(*strangers, *[sample(client, ids, images, seed=s) for ids, images, s in asked]))[24:]
    assert weights("random") > version
    flushed = await asyncio.gather(*[sample(client, ids, images, seed=s) for ids, images, s in reversed(asked)])
    for one, two, three in zip(alone, mixed, reversed(flushed), strict=True):
        assert one.token_ids == two.token_ids == three.token_ids
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5) and one.logprobs == pytest.approx(three.logprobs, abs=1e-5)
    assert len({tuple(g.token_ids) for g in alone}) == 24


async def test_samples_follow_the_distribution(client, weights):
    """600 seeds at one position: the share of each frequent token is within 5 sigma of its probability."""
    weights("chain")
    n = 600
    ids = TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False)
    said = await asyncio.gather(*[sample(client, ids, max_new_tokens=1, seed=s * 7919) for s in range(n)])
    probability = {g.token_ids[0]: 2.718281828 ** g.logprobs[0] for g in said}
    frequent = {i: p for i, p in probability.items() if p > 0.05}
    assert len(frequent) == 3  # the three things that this chain does after a line break
    for token, p in frequent.items():
        share = sum(g.token_ids[0] == token for g in said) / n
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5


# --------------------------------------------------------------------------------------------------------------- failures
async def test_a_request_that_the_engine_refuses_is_not_tried_again(engine, monkeypatch):
    client = EngineClient([engine.url], SGLangWire(), timeout_s=60, retries=5, stop_ids=[STOP])
    tries: list[str] = []
    once = client._once
    monkeypatch.setattr(client, "_once", lambda url, *rest: tries.append(url) or once(url, *rest))
    with pytest.raises(EngineError, match="400") as e:
        await sample(client, words(1, 5000))  # longer than the model's context
    assert not e.value.retryable and engine.url in str(e.value)
    assert tries == [engine.url]
    await client.close()


async def test_a_dead_engine_is_named_and_a_live_one_takes_over(engine, weights):
    weights("random")
    dead = "http://127.0.0.1:9"
    client = EngineClient([dead], SGLangWire(), timeout_s=60, retries=1, stop_ids=[STOP])
    with pytest.raises(EngineError, match=dead):
        await sample(client, words(1, 5))
    await client.close()
    client = EngineClient([dead, engine.url], SGLangWire(), timeout_s=60, retries=1, stop_ids=[STOP])
    moved, straight = [await sample(client, words(1, 5), url=url) for url in (dead, engine.url)]
    assert moved.token_ids == straight.token_ids
    await client.close()


async def test_a_deadline_aborts_in_the_engine_too(engine, client, weights):
    weights("random")
    hasty = EngineClient([engine.url], SGLangWire(), timeout_s=0.3, retries=0)
    with pytest.raises(EngineError, match="no answer within"):
        await sample(hasty, words(1, 5), **ENDLESS)
    await hasty.close()
    await _idle(engine)


async def test_a_cancelled_turn_is_aborted(engine, client, weights):
    weights("random")
    turn = asyncio.ensure_future(sample(client, words(1, 5), **ENDLESS))
    await asyncio.sleep(0.5)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await _idle(engine)


async def _idle(engine) -> None:
    """Return once the engine runs nothing; it would take minutes to sample what was asked of it."""
    import httpx

    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(20):
        while True:
            loads = (await http.get(f"{engine.url}/v1/loads")).json()["loads"]
            if all(x["num_running_reqs"] == x["num_waiting_reqs"] == 0 for x in loads):
                return
            await asyncio.sleep(0.1)
