"""Forward and backward over a list of micro-batches, through megatron-core's pipeline schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_mmsr1.megatron import lora
from megatron_mmsr1.megatron.batch import MicroBatch
from megatron_mmsr1.megatron.context_parallel import joined
from megatron_mmsr1.megatron.logprob import LogitsHead, TokenHead
from megatron_mmsr1.megatron.model import Built, unwrapped
from megatron_mmsr1.megatron.vision import VisionFeatures
from megatron_mmsr1.models._policy import Head

# From a micro-batch's number and its scores: the loss to differentiate and what to report of it.
Loss = Callable[[int, Tensor], tuple[Tensor, Any]]


class ForwardBackward:
    """Runs one model over micro-batches, without its adapters (`lora.py`) where `adapters` is False; every rank calls it alike,
    results are where the last pipeline stage is. `entropy_gradient`: whether a loss may depend on the entropy."""

    def __init__(
        self,
        model: Built,
        vision: VisionFeatures,
        *,
        banned: list[int],
        temperature: float,
        chunk: int,
        adapters: bool = True,
        entropy_gradient: bool = True,
    ) -> None:
        self.model, self.vision, self.adapters = model, vision, adapters
        self.banned, self.temperature, self.chunk = banned, temperature, chunk
        self.entropy_gradient = entropy_gradient
        self.group: Any = parallel_state.get_tensor_model_parallel_group()
        self.sharers: Any = parallel_state.get_context_parallel_group()

    def train(self, batches: list[MicroBatch], loss: Loss) -> list[Any]:
        """Accumulate gradients of the summed losses; what `loss` reported, in order ([] on other stages)."""
        for chunk in self.model.chunks:
            chunk.train()
            chunk.zero_grad_buffer()

        def finish(i: int, out: Tensor) -> tuple[Tensor, Tensor, Any]:
            value, report = loss(i, out)
            return value, torch.zeros((), dtype=torch.int, device=value.device), report

        self.vision.begin([b.images for b in batches])
        reports = self._run(batches, self._token_head, finish, forward_only=False)
        self.vision.end()
        return reports

    @torch.no_grad()
    def score(self, batches: list[MicroBatch]) -> list[Tensor]:
        """float32 [2, N] a micro-batch: log-probs and entropies of its scored tokens, also of those that another
        context-parallel rank holds."""
        return self._run(batches, self._token_head, self._report, forward_only=True)

    @torch.no_grad()
    def logits(self, batches: list[MicroBatch]) -> list[Tensor]:
        """float32 [T, V] a micro-batch, whole on every tensor rank."""
        head = LogitsHead(self.group, self.model.config.sequence_parallel)

        def whole(b: MicroBatch) -> Head:
            if b.layout.exchange is None:
                return head
            own, total = b.layout.exchange.own, len(b.layout.exchange.held)
            return lambda hidden, weight: joined(head(hidden, weight).T, own, total, self.sharers).T

        return self._run(batches, whole, self._report, forward_only=True)

    @staticmethod
    def _report(i: int, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return out.sum(), torch.zeros((), dtype=torch.int, device=out.device), out

    def _token_head(self, batch: MicroBatch) -> Head:
        mine = batch.mine
        head = TokenHead(
            batch.rows,
            batch.targets,
            banned=self.banned,
            temperature=self.temperature,
            chunk=self.chunk,
            group=self.group,
            sequence_parallel=self.model.config.sequence_parallel,
            entropy_gradient=self.entropy_gradient,
        )
        if mine is None:
            return head
        return lambda hidden, weight: joined(head(hidden, weight), mine, len(batch.source), self.sharers)

    def _run(
        self, batches: list[MicroBatch], head: Callable[[MicroBatch], Head], finish: Any, *, forward_only: bool
    ) -> list[Any]:
        def forward(batches: Iterator[tuple[int, MicroBatch]], chunk: Any) -> tuple[Tensor, Any]:
            i, b = next(batches)
            core = unwrapped(chunk)
            features = self.vision(core, b.images) if core.pre_process else None
            if features is not None and b.image_rows is not None:
                features = features.index_select(0, b.image_rows)
            out = chunk(
                input_ids=b.input_ids,
                position_ids=b.position_ids,
                packed=b.layout,
                features=features,
                feature_positions=b.image_tokens,
                head=head(b),
            )
            return out, lambda scores: finish(i, scores)

        each = [iter(list(enumerate(batches))) for _ in self.model.chunks]  # every chunk of layers sees every micro-batch
        with contextlib.nullcontext() if self.adapters else lora.left_out(self.model.cores):
            return get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=each if len(each) > 1 else each[0],
                model=self.model.chunks,
                num_microbatches=len(batches),
                # A hint only, but for interleaved stages, as others exchange shapes; of all context-parallel ranks together.
                seq_length=batches[0].padded,
                micro_batch_size=1,
                forward_only=forward_only,
            )
