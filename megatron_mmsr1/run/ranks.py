"""What the parts of a run need to know of the ranks: who leads, and how small values travel between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from megatron_mmsr1.trajectory import Trajectory

T = TypeVar("T")


class Ranks(Protocol):
    """As `megatron.parallel.Parallel` has it. Every method is collective: all ranks call it."""

    @property
    def rank(self) -> int: ...
    @property
    def dp_rank(self) -> int: ...
    @property
    def dp_size(self) -> int: ...
    @property
    def is_leader(self) -> bool: ...
    def barrier(self) -> None: ...
    def broadcast_object(self, value: T, source: int = 0) -> T: ...
    def gather_from_leaders(self, local: list[T]) -> list[T]: ...
    def distribute(self, local: Sequence[Trajectory], counts: Sequence[int], owners: Sequence[int]) -> list[Trajectory]: ...
