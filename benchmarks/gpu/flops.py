"""How much arithmetic a train step needs, and how much a GPU can do.

Model FLOPs utilisation, as PaLM defines it (Chowdhery et al., arXiv 2204.02311, appendix B): the model's own floating-point
operations a second, over the peak of the GPU. Operations that are done again (activation recompute, our head's second look
at its logits) do not count, nor do padding, norms, rotations and the optimizer. A multiplication and an addition are two
operations; backward is twice forward. Other than there, attention counts only what the causal mask leaves, the output layer
only the tokens that it is asked for, and the embedding, a look-up, nothing:

    3 * (2 N T  +  sum over sequences of 2 L q s^2  +  2 V h n)

N weights of the layers' matrices, T tokens, L layers, q = heads * size of a head, s the length of a sequence (its scores and
their use take 2 * 2 * q * s^2 operations a layer, half of them below the diagonal), V vocabulary, h hidden size, n scored
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Dense bf16 operations a second. NVIDIA's data sheets of H100 and H200 (SXM): 1,979 TFLOP/s with sparsity, half without.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def peak(name: str) -> float | None:
    """By the name that the driver gives the GPU; None for one that is not listed."""
    return PEAKS.get(name)


def matrix_weights(text: dict[str, Any]) -> int:
    """N, from the language model's part of config.json."""
    h, heads = text["hidden_size"], text["num_attention_heads"]
    head = h // heads
    attention = h * head * (heads + 2 * text["num_key_value_heads"]) + heads * head * h
    return text["num_hidden_layers"] * (attention + 3 * h * text["intermediate_size"])


def train_step(text: dict[str, Any], lengths: Sequence[int], scored: int) -> float:
    """Operations of forward and backward over sequences of these lengths, of whose tokens `scored` are asked of the head."""
    h = text["hidden_size"]
    layers = 2 * matrix_weights(text) * sum(lengths)
    attention = sum(2 * text["num_hidden_layers"] * h * s**2 for s in lengths)
    return 3.0 * (layers + attention + 2 * text["vocab_size"] * h * scored)
