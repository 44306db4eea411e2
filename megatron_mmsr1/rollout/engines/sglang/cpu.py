"""What SGLang 0.5.21 needs on a CPU beyond its flags: seeded sampling, and attention over a whole batch at once.

Seeded sampling is SGLang's deterministic-inference mode, of which a CPU lacks three things: permission (an attention backend
must be on a list), the noise (an operator of `cpu_shims.sgl_kernel`) and the Triton kernels of the batch-invariant mode,
without which a token's logits move by about 1e-6 with the company it is computed in. `engines.sglang.entry` calls
`install` before SGLang reads its arguments.
"""

from __future__ import annotations

import inspect
import multiprocessing
from typing import Any

import torch
from sglang.srt import batch_invariant_ops
from sglang.srt.arg_groups import choices
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch.nn.functional import scaled_dot_product_attention

from megatron_mmsr1.procs import patches

# Padding a batch to its longest member may cost this many times the arithmetic of going one by one, and still be faster
# for the small models that run on CPUs, where the cost is in the calls.
_PADDING_LIMIT = 6


class BatchedAttention(TorchNativeAttnBackend):
    """SGLang's `torch_native` attention loops over the sequences of a batch; this one pads them and makes one call a layer.

    The same mathematics to rounding. Sliding windows, encoder-decoder models and batches that would be mostly padding go to the
    parent's loop.
    """

    def _run_sdpa_forward_decode(self, *args, **kwargs):
        """query, output [B, heads, D]; the signature is the parent's."""
        a = _DECODE.bind(self, *args, **kwargs).arguments
        seq_lens = a["seq_lens"]
        if a.get("encoder_lens") is not None or a.get("sliding_window_size") is not None:
            return super()._run_sdpa_forward_decode(*args, **kwargs)
        longest = int(seq_lens.max())
        seen = torch.arange(longest)[None, :] < seq_lens[:, None]
        a["output"][:] = _attend(a, a["query"].unsqueeze(2), longest, seen[:, None, None, :]).squeeze(2)
        return a["output"]

    def _run_sdpa_forward_extend(self, *args, **kwargs):
        """query, output [tokens, heads, D]; the signature is the parent's."""
        a = _EXTEND.bind(self, *args, **kwargs).arguments
        seq_lens, extend_lens, query = a["seq_lens"], a["extend_seq_lens"], a["query"]
        longest, widest = int(seq_lens.max()), int(extend_lens.max())
        # The parent computes whole squares, the cached prefix included.
        wasteful = longest * widest * len(seq_lens) > _PADDING_LIMIT * int((seq_lens * seq_lens).sum())
        plain = a.get("encoder_lens") is None and a.get("sliding_window_size") is None and a.get("causal", False)
        if wasteful or not plain:
            return super()._run_sdpa_forward_extend(*args, **kwargs)
        column = torch.arange(widest)
        real = column[None, :] < extend_lens[:, None]  # [B, Q] which padded queries are tokens
        padded = query.new_zeros(len(seq_lens), widest, *query.shape[1:])
        padded[real] = query
        # A query sees the cached prefix and its own chunk up to itself; a padded one the first key, since no row of a
        # softmax may be empty.
        last = torch.where(real, a["extend_prefix_lens"][:, None] + column[None, :], 0)
        seen = torch.arange(longest)[None, None, :] <= last[:, :, None]
        a["output"][:] = _attend(a, padded.transpose(1, 2), longest, seen[:, None]).transpose(1, 2)[real]
        return a["output"]


_DECODE = inspect.signature(TorchNativeAttnBackend._run_sdpa_forward_decode)
_EXTEND = inspect.signature(TorchNativeAttnBackend._run_sdpa_forward_extend)


def _attend(a: dict[str, Any], query: torch.Tensor, longest: int, seen: torch.Tensor) -> torch.Tensor:
    """`query` [B, heads, Q, D] over the first `longest` cached tokens of each sequence, where `seen` [B, 1, Q, longest]."""
    rows = a["req_to_token"].index_select(0, a["req_pool_indices"])[:, :longest].reshape(-1)
    k, v = (_gather(cache, rows, len(query), query.dtype) for cache in (a["k_cache"], a["v_cache"]))
    return scaled_dot_product_attention(
        query, k, v, attn_mask=seen, scale=a.get("scaling"), enable_gqa=a.get("enable_gqa", False)
    )


def _gather(cache: torch.Tensor, rows: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, heads, L, D] of the cached `rows` [B * L]. Indexing with a tensor would be seven times slower than index_select."""
    return cache.index_select(0, rows).view(batch, -1, *cache.shape[1:]).transpose(1, 2).to(dtype)


def install() -> None:
    """Make this process's SGLang ready for CPU. To be called before its server arguments are resolved."""
    patches.check("sglang-on-cpu")
    ATTENTION_BACKENDS["torch_native"] = BatchedAttention
    choices.add_deterministic_attention_backend_choices(["torch_native"])
    choices.add_radix_supported_deterministic_attention_backend_choices(["torch_native"])
    # Would route every CPU matmul through Triton, which has no CPU backend.
    batch_invariant_ops.enable_batch_invariant_mode = lambda *args, **kwargs: None
    # The weight checker waits for a GPU before it hashes.
    torch.cuda.synchronize = lambda device=None: None
    # SGLang spawns its scheduler and detokenizer, which then import for as long as this process did. Without CUDA a fork is
    # safe, and they start at once.
    choose = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda method, force=False: choose("fork", force=True)
