"""Ours beside verl's, slime's, prime-rl's, NeMo-RL's and TRL's on a CPU: work over ranks, packs, the pictures of a micro-batch.

    python -m pip install --target PEERS --no-deps trl verl tensordict pyvers datasets xxhash dill multiprocess pyarrow msgspec
    git clone https://github.com/THUDM/slime PEERS/slime          # these three are checkouts, of which single files are read
    git clone https://github.com/PrimeIntellect-ai/prime-rl PEERS/prime-rl
    git clone https://github.com/NVIDIA-NeMo/RL PEERS/nemo-rl
    python benchmarks/batching.py PEERS

That every answer is a right one is asserted first: each sequence in one list, no pack over its budget, the same pixels. Then
all are measured in turn, on one thread; a ratio below 1 is a row that the peer wins. A peer that is not there is left out, by
name.
Lengths are lognormal(6.6, 0.8) within 64 and 8,192 tokens, as of long answers with a few very long ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

CAPACITY = 8192
GROUPS, GROUP, GRID = 4, 8, (1, 50, 64)  # a micro-batch: rollouts of 4 prompts, of each one picture of 3,200 patches
Lists = list[list[int]]
Row = dict[str, Any]


def lengths_of(n: int) -> list[int]:
    return np.random.default_rng(0).lognormal(6.6, 0.8, n).clip(64, CAPACITY).astype(int).tolist()


def measured(ways: dict[str, Callable[[], Any]], *, slow: float = 5.0) -> dict[str, float]:
    """Median milliseconds of each, in turn; what takes longer than `slow` seconds is run once."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(10):
        for name, way in ways.items():
            if seconds[name] and max(seconds[name]) > slow:
                continue
            started = time.perf_counter()
            way()
            if turn or time.perf_counter() - started > slow:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(s) * 1000 for name, s in seconds.items()}


class Peers:
    """Functions of the peers that are in a directory; the others are told and left out."""

    def __init__(self, root: Path) -> None:
        self.root, self.absent = root, set[str]()
        sys.path.append(str(root))  # behind our own environment, which has torch

    def module(self, peer: str, name: str) -> Any:
        return self._tried(peer, lambda: import_module(name))

    def file(self, peer: str, path: str, name: str = "") -> Any:
        """A single file of a checkout, under a module `name` where others of its files import it by one."""

        def load() -> Any:
            key = name or f"peer_{peer.replace('-', '_')}_{Path(path).stem}"
            for i in range(1, len(parts := key.split("."))):
                parent = sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
                parent.__path__ = []
            spec = importlib.util.spec_from_file_location(key, self.root / peer / path)
            assert spec is not None and spec.loader is not None
            module = sys.modules[key] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module

        return self._tried(peer, load)

    def _tried(self, peer: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (ImportError, FileNotFoundError) as e:
            if peer not in self.absent:
                print(f"{peer} is left out: {e}")
            self.absent.add(peer)
            return None


def balancing(peers: Peers, n: int, k: int) -> Iterator[Row]:
    """Costs in k lists: the largest sum over the mean."""
    from megatron_mmsr1.data.packing import balance

    costs = lengths_of(n)
    ways: dict[str, Callable[[], Lists]] = {"ours": lambda: balance(costs, k)}
    for peer, module in (
        ("verl", peers.module("verl", "verl.utils.seqlen_balancing")),
        ("slime", peers.file("slime", "slime/utils/seqlen_balancing.py")),
    ):
        if module:
            ways |= {
                f"{peer} karmarkar_karp": lambda m=module: m.karmarkar_karp(costs, k, False),
                f"{peer} karmarkar_karp, equal counts": lambda m=module: m.karmarkar_karp(costs, k, True),
                f"{peer} greedy_partition": lambda m=module: m.greedy_partition(costs, k, False),
            }
    # It grows with the square of the items and of the lists: three minutes for 1,024 over 64.
    if n <= 256 and (prime := _prime(peers)):
        ways["prime-rl balanced_partition"] = lambda: prime.balanced_partition(costs, k)

    def quality(lists: Lists) -> float:
        return max(sum(costs[i] for i in x) for x in lists) / (sum(costs) / k)

    yield from _rows(f"balance {n} sequences over {k} ranks", ways, n, quality, "largest over mean")


def packing(peers: Peers, n: int) -> Iterator[Row]:
    """Sequences in packs of a budget: how many, over the least that their sum allows."""
    from megatron_mmsr1.data.packing import pack

    lengths = lengths_of(n)
    ways: dict[str, Callable[[], Lists]] = {"ours": lambda: pack(lengths, CAPACITY)}
    if slime := peers.file("slime", "slime/utils/seqlen_balancing.py"):
        ways["slime first_fit_pack"] = lambda: slime.first_fit_pack(lengths, CAPACITY)
    if nemo := peers.file("nemo-rl", "nemo_rl/data/packing/algorithms.py"):
        names = ("concatenative", "first_fit_decreasing", "first_fit_shuffle", "modified_first_fit_decreasing")
        for name in names:
            packer = nemo.get_packer(name, CAPACITY)
            ways[f"nemo-rl {name}"] = lambda p=packer: p.pack(lengths)
    if trl := peers.module("trl", "trl.data_utils"):
        ways["trl bfd"] = _of_trl(trl, lengths)

    def quality(lists: Lists) -> float:
        assert max(sum(lengths[i] for i in x) for x in lists) <= CAPACITY
        return len(lists) / -(-sum(lengths) // CAPACITY)

    yield from _rows(f"pack {n} sequences to {CAPACITY} tokens", ways, n, quality, "packs over lower bound")


def _of_trl(trl: Any, lengths: list[int]) -> Callable[[], Lists]:
    """TRL packs columns of an arrow table and copies them; each token here is the number of its sequence."""
    import pyarrow as pa

    table = pa.table({"input_ids": [np.full(n, i, dtype=np.int32) for i, n in enumerate(lengths)]})

    def way() -> Lists:
        packed = trl._pack_bfd(table, CAPACITY, on_seq_length_overflow="truncate")
        ids = packed["input_ids"].combine_chunks()
        values, bounds = ids.values.to_numpy(), ids.offsets.to_numpy()
        parts = packed["seq_lengths"].to_pylist()
        return [values[b + np.cumsum([0, *p[:-1]])].tolist() for b, p in zip(bounds, parts, strict=False)]

    return way


def _rows(what: str, ways: dict[str, Callable[[], Lists]], n: int, quality: Callable[[Lists], float], of: str) -> Iterator[Row]:
    found: dict[str, float] = {}
    for name, way in ways.items():
        lists = way()
        assert sorted(i for x in lists for i in x) == list(range(n)), f"{what}: {name} loses or repeats a sequence"
        found[name] = quality(lists)
    ms = measured(ways)
    for name in ways:
        yield {"what": what, "who": name, "quality": found[name], "of": of, "ms": ms[name], "ratio": ms[name] / ms["ours"]}


def pictures(peers: Peers) -> Iterator[Row]:
    """What the vision tower is given for a micro-batch, float32 [patches, 1176], and its bytes.

    Ours begins with pictures as they are stored and decodes each that is different once; the peers begin with patches that
    their rollouts have made of every picture of every sample, which is not in their time.
    """
    import torch

    from megatron_mmsr1.data.images import canonicalize, pixel_values

    rng = np.random.default_rng(0)
    pngs = [_png(rng, canonicalize) for _ in range(GROUPS)]
    patches = [torch.from_numpy(pixel_values(png)) for png in pngs]
    owner = [g for g in range(GROUPS) for _ in range(GROUP)]
    whole = torch.cat([patches[g] for g in owner])

    def ours() -> Any:
        return torch.cat([torch.from_numpy(pixel_values(png)) for png in pngs])

    ways: dict[str, Callable[[], Any]] = {"ours": ours}
    if nemo := peers.file("nemo-rl", "nemo_rl/data/multimodal_utils.py"):

        def of_nemo(shared: bool) -> Callable[[], Any]:
            rows = [nemo.PackedTensor(p, dim_to_pack=0) for p in patches]
            if shared:
                rows = [r.enable_deduplication() for r in rows]
            return lambda: nemo.PackedTensor.concat([rows[g] for g in owner]).as_tensor()

        ways |= {"nemo-rl PackedTensor": of_nemo(False), "nemo-rl PackedTensor, deduplicated": of_nemo(True)}
    if prime := _prime(peers):
        ways["prime-rl _materialize_bin"] = _of_prime(prime, patches, owner)
    for name, way in ways.items():
        got = way()
        alike = torch.cat([got[g * len(patches[0]) : (g + 1) * len(patches[0])] for g in owner]) if name == "ours" else got
        assert torch.equal(alike, whole), f"pictures: {name}"
    bytes_of = {name: way().nbytes for name, way in ways.items()}
    ms = measured(ways)
    what = f"pixels of {GROUPS} x {GROUP} rollouts, a picture of {len(patches[0])} patches a group"
    for name in ways:
        yield {
            "what": what, "who": name, "quality": bytes_of[name] / bytes_of["ours"], "of": "bytes over ours",
            "ms": ms[name], "ratio": ms[name] / ms["ours"],
        }  # fmt: skip


def _png(rng: np.random.Generator, canonicalize: Any) -> bytes:
    """A picture with the detail of a photograph: noise under a coarse pattern."""
    import io

    from PIL import Image

    height, width = GRID[1] * 14, GRID[2] * 14
    coarse = np.kron(rng.integers(0, 200, (height // 28, width // 28, 3)), np.ones((28, 28, 1), dtype=int))
    out = io.BytesIO()
    Image.fromarray((coarse + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)).save(out, "PNG")
    return canonicalize(out.getvalue(), min_pixels=3136, max_pixels=10**7).png


def _prime(peers: Peers) -> Any:
    name = "prime_rl.transports.rollouts.types"
    if name not in sys.modules and not peers.file("prime-rl", "src/prime_rl/transports/rollouts/types.py", name):
        return None
    return sys.modules.get("peer_prime_rl_batch") or peers.file("prime-rl", "src/prime_rl/trainer/batch.py")


def _of_prime(prime: Any, patches: Sequence[Any], owner: Sequence[int]) -> Callable[[], Any]:
    import torch

    def sample(g: int) -> Any:
        p = patches[g]
        pixels = prime.EncodedTensor(dtype="float32", shape=list(p.shape), data=p.numpy().tobytes())
        return prime.MicroBatch(
            input_ids=[0], loss_mask=[True], advantages=[0.0], inference_logprobs=[0.0], position_ids=[0],
            sequence_lengths=[1], temperatures=[1.0], env_names=[""], seq_lens=[1], mm_kwargs={"pixel_values": pixels},
        )  # fmt: skip

    samples = [sample(g) for g in owner]

    def way() -> Any:
        made = prime._materialize_bin(prime._MicroBatchBin(samples, len(samples))).mm_kwargs["pixel_values"]
        return torch.frombuffer(bytearray(made.data), dtype=torch.float32).view(made.shape)

    return way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the directory with the peers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "batching.json")
    args = parser.parse_args()
    import torch

    from benchmarks.record import record

    torch.set_num_threads(1)
    peers = Peers(args.peers)
    rows: list[Row] = []
    for made in (
        *(balancing(peers, n, k) for n, k in ((256, 8), (1024, 8), (1024, 64), (8192, 64))),
        *(packing(peers, n) for n in (1024, 8192)),
        pictures(peers),
    ):
        for r in made:
            print(
                f"{r['what']:<62} {r['who']:<38} {r['of']} {r['quality']:6.3f} {r['ms']:10.2f} ms  x{r['ratio']:.2f}",
                flush=True,
            )
            rows.append(r)
    record(args.out, rows)


if __name__ == "__main__":
    main()
