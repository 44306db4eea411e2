"""Ours beside verl's and TRL's on a CPU: advantages, policy losses with gradients, log-probs and entropies with gradients.

    python -m pip install --target PEERS --no-deps verl trl ray hydra-core tensordict codetiming pyvers cloudpickle torchdata \\
        msgpack jsonschema antlr4-python3-runtime==4.9.3 pylatexenc dill peft accelerate datasets multiprocess xxhash pyarrow
    python benchmarks/peers.py PEERS

PEERS is only read by this benchmark; the peers run with our torch. That both compute the same is asserted first, then each is
measured in turn, on one thread, and the medians stand as they are: a ratio below 1 is a row that the peer wins. Theirs take
responses as padded rows, ours as one flat row: advantages are compared on rows of a single token, so that nobody pads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

REPEATS = 15
GROUP = 8
CHUNK = 128  # tokens whose logits ours holds at a time
Way = Callable[[], Any]


def median_ms(ways: dict[str, Way]) -> dict[str, float]:
    """Of each, run in turn, so that other work on the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(REPEATS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(s) * 1000 for name, s in seconds.items()}


def compared(what: str, ways: dict[str, Way], tolerance: float) -> list[dict[str, Any]]:
    """A row a peer; `ways["ours"]` is ours. Every way returns a tensor, all of them alike. AssertionError where they differ."""
    ours = ways["ours"]()
    apart = {name: float((way() - ours).abs().max()) for name, way in ways.items()}
    assert max(apart.values()) <= tolerance, f"{what}: {apart}"
    ms = median_ms(ways)
    return [row(what, name, ms["ours"], ms[name], apart[name]) for name in ways if name != "ours"]


def row(what: str, peer: str, ours_ms: float, peer_ms: float, apart: float) -> dict[str, Any]:
    return {"what": what, "peer": peer, "ours_ms": ours_ms, "peer_ms": peer_ms, "ratio": peer_ms / ours_ms, "apart": apart}


def advantages(rollouts: int) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from megatron_mmsr1 import algorithm

    core = import_module("verl.trainer.ppo.core_algos")
    torch.manual_seed(0)
    rewards = torch.rand(rollouts)
    groups = [i // GROUP for i in range(rollouts)]
    padded, mask, index = rewards[:, None], torch.ones(rollouts, 1), np.array(groups, dtype=object)
    theirs = {
        "grpo": ["grpo_outcome", "grpo_vectorized_outcome"],
        "rloo": ["rloo_outcome", "rloo_vectorized_outcome"],
        "reinforce_pp_baseline": ["reinforce_plus_plus_baseline_outcome"],
    }

    def theirs_of(function: str) -> Way:
        compute = getattr(core, f"compute_{function}_advantage")
        return lambda: compute(token_level_rewards=padded, response_mask=mask, index=index)[0][:, 0].float()

    def ours_of(name: str) -> Way:
        return lambda: algorithm.advantage(name, rewards, groups)

    rows = []
    for name, functions in theirs.items():
        ways = {"ours": ours_of(name)} | {f"verl {f}": theirs_of(f) for f in functions}
        rows += compared(f"advantage {name}, {rollouts} rollouts", ways, 1e-4)
    return rows


def losses(responses: int, longest: int) -> list[dict[str, Any]]:
    """The loss and its gradient, one after the other in one tensor."""
    import torch

    from megatron_mmsr1 import algorithm

    core = import_module("verl.trainer.ppo.core_algos")
    torch.manual_seed(0)
    lengths = torch.randint(longest // 8, longest + 1, (responses,))
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = int(cu[-1])
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).float()
    old, advantage = -torch.rand(tokens) * 3, torch.randn(responses).repeat_interleave(lengths)
    new = old + torch.randn(tokens) * 0.1

    def rows_of(flat: Any) -> Any:
        return torch.zeros(responses, longest).masked_scatter_(mask.bool(), flat)

    flat, padded = new.clone().requires_grad_(), rows_of(new).requires_grad_()
    old_rows, advantage_rows = rows_of(old), rows_of(advantage)
    config = import_module("verl.workers.config").ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    per_response = torch.repeat_interleave(lengths.float(), lengths) * responses
    cases = {
        "clip": ("vanilla", {"low": 0.2, "high": 0.2, "dual": 3.0}, "token-mean"),
        "gspo": ("gspo", {"low": 0.2, "high": 0.2}, "seq-mean-token-mean"),
        "cispo": ("cispo", {"low": 0.2, "high": 0.2}, "token-mean"),
        "sapo": ("sapo", {"tau_pos": 1.0, "tau_neg": 1.05}, "seq-mean-token-mean"),
    }

    def ours_of(name: str, options: dict[str, Any], average: str) -> Way:
        def way() -> Any:
            flat.grad = None
            per_token = algorithm.policy_loss(name, flat, old, advantage, cu, **options)
            loss = per_token.mean() if average == "token-mean" else (per_token / per_response).sum()
            loss.backward()
            assert flat.grad is not None
            return torch.cat([loss.detach()[None], flat.grad])

        return way

    def theirs_of(name: str, average: str) -> Callable[[], Any]:
        compute = getattr(core, f"compute_policy_loss_{name}")

        def way() -> Any:
            padded.grad = None
            loss, _ = compute(old_rows, padded, advantage_rows, mask, loss_agg_mode=average, config=config)
            loss.backward()
            return loss.detach(), padded.grad

        return way

    rows = []
    for name, (function, options, average) in cases.items():
        ours, theirs = ours_of(name, options, average), theirs_of(function, average)
        loss, gradient = theirs()
        theirs_flat = torch.cat([loss[None], gradient[mask.bool()]])
        apart = float((ours() - theirs_flat).abs().max())
        assert apart <= 1e-5, f"loss {name}: {apart}"
        ms = median_ms({"ours": ours, "verl": theirs})
        what = f"loss {name} and gradient, {tokens} tokens in {responses} responses of at most {longest}"
        rows.append(row(what, f"verl {function}", ms["ours"], ms["verl"], apart))
    return rows


def head(tokens: int, hidden: int, vocabulary: int) -> list[dict[str, Any]]:
    """Log-prob and entropy of each token from its hidden state, forwards and backwards to state and weight. Ours never holds
    the logits of all tokens (megatron/logprob.py) and computes them twice; the peers' functions begin at logits, so a product
    stands before them."""
    import torch
    import torch.distributed as dist

    from benchmarks.gpu import actor as actors

    actors.prepare()
    from megatron_mmsr1.config import parse
    from megatron_mmsr1.megatron import parallel
    from megatron_mmsr1.megatron.logprob import TokenHead

    verl, trl = import_module("verl.utils.torch_functional"), import_module("trl.trainer.utils")
    parallel.init(parse({"model": {"path": "none"}}))
    torch.manual_seed(0)
    h = torch.randn(tokens, 1, hidden).requires_grad_()
    weight = (torch.randn(vocabulary, hidden) * 2 / hidden**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    group: Any = dist.group.WORLD
    ours = TokenHead(
        torch.arange(tokens), targets, banned=[], temperature=1.0, chunk=CHUNK, group=group, sequence_parallel=False
    )

    def of_trl(logits: Any) -> tuple[Any, Any]:
        return trl.selective_log_softmax_and_entropy(logits, targets)

    def of_verl(logits: Any) -> tuple[Any, Any]:
        return verl.logprobs_from_logits(logits, targets), verl.entropy_from_logits(logits)

    def way(compute: Callable[[], Any]) -> Way:
        def run() -> Any:
            h.grad = weight.grad = None
            out = compute()
            (out[0].sum() + 0.1 * out[1].sum()).backward()
            assert h.grad is not None
            return torch.cat([out.detach().flatten(), h.grad.flatten()])

        return run

    def from_logits(function: Callable[[Any], tuple[Any, Any]]) -> Way:
        return way(lambda: torch.stack(function(h.squeeze(1) @ weight.T)))

    ways = {"ours": way(lambda: ours(h, weight)), "verl": from_logits(of_verl), "trl": from_logits(of_trl)}
    rows = compared(f"log-prob, entropy and gradients, {tokens} tokens, hidden {hidden}, vocabulary {vocabulary}", ways, 1e-3)
    mib = {name: peak_mib(way) for name, way in ways.items()}
    return [r | {"ours_peak_mib": mib["ours"], "peer_peak_mib": mib[r["peer"]]} for r in rows]


def peak_mib(way: Way) -> float:
    """Tensors that it held at a time, of those that it made itself."""
    from benchmarks.allocations import Allocations

    counted = Allocations()
    with counted, counted.during("all"):
        way()
    return counted.most["all"] / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="where verl and trl were installed to")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    args = parser.parse_args()
    sys.path.append(str(args.peers))  # behind our own environment, which has torch
    import torch

    from benchmarks.record import record

    torch.set_num_threads(1)
    versions = {name: Distribution.from_name(name).version for name in ("verl", "trl", "torch")}
    rows = [*advantages(4096), *losses(64, 1024), *head(1024, 512, 32768)]
    for r in rows:
        print(f"{r['what']:<95} {r['peer']:<36} ours {r['ours_ms']:9.2f} ms  peer {r['peer_ms']:9.2f} ms  x{r['ratio']:.2f}")
        if "peer_peak_mib" in r:
            print(f"{'':<95} {'at their peak':<36} ours {r['ours_peak_mib']:8.1f} MiB  peer {r['peer_peak_mib']:7.1f} MiB")
    record(args.out, [r | {"versions": versions} for r in rows])


if __name__ == "__main__":
    main()
