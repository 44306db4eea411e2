"""What autograd keeps of a forward pass until its backward pass, and what a backward pass holds beside it, in bytes a rank.

Korthikanti et al. (arXiv 2205.05198, section 4) count the same for GPT with dropout; layers here are others. With T tokens, h
hidden, q and k the numbers of a token's queries and keys, f feed-forward width, w bytes a number, t tensor ranks and s = t
under sequence parallelism (else 1), a layer keeps, on a CPU (the local layers of `megatron/layers.py`, found with
torch.autograd.graph.saved_tensors_hooks):

    two norms            2 (8 h + 4) T / s    the input and its normalised copy, float32 also of bfloat16 (torch takes apart
                                              `rms_norm` there), and a float32 a token
    inputs of qkv, fc1   2 w h T / s
    attention            w (2 q + 2 k) T / t  queries, keys, values and output as padded batches (here without padding)
                         4 heads T / t        logarithms of its sums
    input of the output projection  w q T / t feed-forward         5 w f T / t          the output of fc1 (2 f), silu(gate),
    the other half, their product under context parallelism  w (2 q + 2 c k) T / t   in the place of both: T of a rank's
    tokens, keys and values of all c ranks' norms of q and k     8 (q + k) T / t      Qwen3's: input and normalised copy in
    float32

`transformer-engine`'s layers keep less: a norm and the matrix behind it are one module that keeps its input (w h), the
normalised input (w h) and 4 bytes a token; attention keeps rotated q and k, the output of qkv (v is a view of it) and its own
output, which is the projection's input as well; the fused SwiGLU keeps the output of fc1, fc2 its input. That column is read,
not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_mmsr1.config.lora import LoraConfig, Target
from megatron_mmsr1.estimate.dimensions import Dimensions, Tower
from megatron_mmsr1.estimate.parameters import Layout

Layers = Literal["cpu", "transformer-engine"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Kept:
    """Which layers compute, at how many bytes a number, in what split."""

    d: Dimensions
    at: Layout
    width: int
    layers: Layers
    lora: LoraConfig | None = None

    @property
    def stream(self) -> int:
        """The residual stream of a token."""
        return self.width * self.d.hidden // self.at.tokens_over

    def layer(self, recompute: Recompute = "none") -> int:
        """Kept a token of a decoder layer. `full` keeps its input alone. `selective` computes attention again, and keeps what
        went into it: on a CPU no less than attention itself keeps, which holds no scores."""
        if recompute == "full":
            return self.stream
        return self._norms() + self._attention(recompute) + self._forward() + self._adapters()

    def _norms(self) -> int:
        d, w, s = self.d, self.width, self.at.tokens_over
        both = 2 * (self._normed() * d.hidden + 4) // s if self.layers == "cpu" else 2 * (w * d.hidden + 4) // s
        return both + (0 if self.lora else 2 * w * d.hidden // s)

    def _normed(self) -> int:
        """Bytes a number that a norm keeps on a CPU: its input, and the normalised copy for the gradient of its weight."""
        return 4 if self.lora else 8

    def _adapters(self) -> int:
        """Frozen matrices keep no inputs, but adapters do: those of qkv and fc1 of all tokens, where sequence parallelism has
        gathered them; and all adapters A's output."""
        if self.lora is None:
            return 0
        wide = sum(t in ("qkv_proj", "gate_up_proj") for t in self.lora.targets)
        return self.width * (wide * self.d.hidden + len(self.lora.targets) * self.lora.rank)

    def _keeps_input(self, name: Target) -> bool:
        """Whether a matrix does, for its own gradient or its adapter's."""
        return self.lora is None or (name in self.lora.targets and not self.d.experts)

    def _attention(self, recompute: Recompute) -> int:
        d, w, t = self.d, self.width, self.at.tensor
        q, k = d.query, d.keys
        rotated_and_mixed = (q + k) + (q + 2 * k)  # v is a view of the output of qkv, which stays whole for it
        if self.layers == "cpu" and self.at.context > 1:
            kept = w * (2 * q + 2 * k * self.at.context) // t
            norms = self._normed() * (q + k) // t if d.qk_norm else 0
        elif self.layers == "cpu":
            joined = q if self._keeps_input("o_proj") else 0
            kept = w * ((rotated_and_mixed if recompute == "selective" else 2 * q + 2 * k) + joined) // t
            norms = self._normed() * (q + k) // t if d.qk_norm else 0
        else:
            kept = w * (rotated_and_mixed + q) // t
            norms = w * (q + k) // t if d.qk_norm else 0
        return kept + norms + (4 * d.heads // t if recompute == "none" else 0)

    def _forward(self) -> int:
        d, w = self.d, self.width
        wide = (5 if self.layers == "cpu" else 3) - (0 if self._keeps_input("down_proj") else 1)
        each = wide * d.ffn // self.at.tensor
        if not d.experts:
            return w * each
        # A mixture keeps, of each token and expert that it goes to, the token's row as it was sent and as it came back, and
        # float32 logits and probabilities of all experts.
        rows = 2 * d.hidden * self.at.expert_tensor // self.at.tensor
        return d.chosen * w * (each + rows) + 3 * 4 * d.experts // self.at.tokens_over

    def last_norm(self) -> int:
        d, s = self.d, self.at.tokens_over
        return (self._normed() * d.hidden + 4) // s if self.layers == "cpu" else (self.width * d.hidden + 4) // s

    def rotary(self) -> int:
        """Angles (float32), cosines and sines a token, once for all layers."""
        return self.d.head * 4 + self.d.head * 3 * self.width // 2

    def backward(self) -> int:
        """Beside what is kept, at the worst point of a layer's backward pass, a token: the gradients of the residual stream
        and of both factors of the feed-forward's product (its own gradient is there still, what was kept of it is not)."""
        inner = 2 * self.d.ffn * max(1, self.d.chosen) // self.at.tensor
        return self.stream + self.width * inner


def head_forward(k: Kept, scored: int, chunk: int) -> int:
    """`megatron/logprob.py`, forwards: logits of a chunk, e to their power and the product of both, in float32; from the second
    chunk on the last one's first two are there still while new logits come about, in bfloat16 first."""
    n = min(scored, chunk) * k.d.vocabulary // k.at.tensor
    later = scored > chunk and k.width == 2
    return n * (12 + (2 if later else 0))


def head_backward(k: Kept, scored: int, chunk: int, *, trained: bool = True) -> int:
    """Backwards: the weight's gradient in float32 and one chunk's share of it, where it is `trained`, and a chunk's logits,
    which become their own gradients in place; in bfloat16 a copy of them. From the second chunk on, the old ones stand beside
    the new."""
    words = k.d.vocabulary // k.at.tensor
    weight, n = words * k.d.hidden if trained else 0, min(scored, chunk) * words
    one = 4 * n if k.width == 4 else 6 * n
    products = k.width * weight + one
    renewed = one + (4 * n if k.width == 4 else 6 * n) if scored > chunk else 0
    return 4 * weight + max(products, renewed)


def tower_forward(t: Tower, patches: int, width: int) -> int:
    """A frozen tower's transient: pixels (float32 and as computed), residual stream, its norm, and the widest of a block:
    queries, keys, values and output, or the feed-forward's inner numbers (two where it is gated, and their product)."""
    inner = max(4 * t.width, (3 if t.kind == "qwen2_5_vl" else 2) * t.ffn)
    return patches * (t.patch_values * (4 + width) + width * (2 * t.width + inner))


def tower_kept(t: Tower, patches: int, width: int) -> int:
    """A trained tower keeps, a block and patch: two norms' inputs (and normalised copies in float32 where it is RMSNorm), the
    inputs of its matrices, rotated queries and keys (float32), values and output, and inner numbers. Of the merger, inputs."""
    gated = t.kind == "qwen2_5_vl"
    norms = 2 * (8 if gated else width) * t.width
    attention = width * 5 * t.width + 2 * 4 * t.width
    forward = width * t.width + width * (4 if gated else 2) * t.ffn
    merged = width * 3 * t.width * t.mergers
    return patches * (t.patch_values * width + t.depth * (norms + attention + forward) + merged)
