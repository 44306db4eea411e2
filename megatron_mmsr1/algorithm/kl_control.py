"""A KL coefficient that follows the KL."""

from __future__ import annotations

LARGEST_ERROR = 0.2


def adapted(coef: float, kl: float, target: float, gain: float) -> float:
    """coef * (1 + gain * e), where e = kl / target - 1 within +-0.2 (arXiv 1909.08593, section 2.2: gain 0.1)."""
    return coef * (1 + gain * min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR))
