"""The stand-in for sgl_kernel, and that SGLang still asks of it what it did: to be looked at when SGLang is bumped."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

SHIMS = Path(__file__).parents[1] / "megatron_mmsr1" / "rollout" / "engines" / "sglang" / "cpu_shims"


def run(code: str) -> str:
    """In a process of its own: the stand-in must not leak into this one."""
    code = f"import sys; sys.path.insert(0, {str(SHIMS)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_version_of_sglang_that_this_was_written_for():
    assert importlib.metadata.version("sglang") == "0.5.21"


def test_what_it_offers():
    """A missing operator says its name. AMX stays off: SGLang packs weights for it where `convert_weight_packed` exists."""
    out = run(
        "import torch, sgl_kernel\n"
        "print(hasattr(torch.ops.sgl_kernel, 'convert_weight_packed'))\n"
        "try: sgl_kernel.fast_topk(1)\n"
        "except NotImplementedError as e: print(e)"
    )
    assert out.startswith("False\nsgl_kernel.fast_topk")


def murmur3(data: bytes) -> int:
    """MurmurHash3 x86_32 with seed 0, written from its definition, byte by byte."""
    h = 0
    for i in range(0, len(data), 4):
        k = int.from_bytes(data[i : i + 4], "little") * 0xCC9E2D51 & 0xFFFFFFFF
        k = ((k << 15) | (k >> 17)) & 0xFFFFFFFF
        h ^= k * 0x1B873593 & 0xFFFFFFFF
        h = ((h << 13) | (h >> 19)) & 0xFFFFFFFF
        h = (h * 5 + 0xE6546B64) & 0xFFFFFFFF
    h ^= len(data)
    for multiply, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        h = (h ^ (h >> shift)) * multiply & 0xFFFFFFFF
    return h


def test_murmur_against_its_published_vectors():
    """The reference above, on vectors that the algorithm's documentation gives for seed 0."""
    assert [murmur3(x) for x in (b"", b"test")] == [0, 0xBA6BD213]


def test_the_sampling_noise_is_murmur3_of_seed_position_column():
    rows = [(0, 0), (1, 7), (42, 3), (2**31, 100_000), (2**32 + 5, 1), (2**63 - 1, 2**31)]
    columns = [0, 1, 255, 151_935]
    out = run(
        "import torch, sgl_kernel\n"
        f"s = torch.tensor({[r[0] for r in rows]}).to(torch.uint64); p = torch.tensor({[r[1] for r in rows]})\n"
        f"print(torch.ops.sgl_kernel.murmur_hash32_cpu(s, p, torch.tensor({columns})).tolist())"
    )
    expected = [
        [murmur3(s.to_bytes(8, "little") + p.to_bytes(4, "little") + c.to_bytes(4, "little")) for c in columns] for s, p in rows
    ]
    assert out == str(expected)
