"""Process groups: who is who in the torchrun job, and how Python objects travel between ranks."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data import flat
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import platform
from megatron_mmsr1.trajectory import Trajectory

T = TypeVar("T")

# Ranks wait here for the leaders' rollouts, so it must outlast the longest one; finite, so that a lost rank ends the job.
TIMEOUT = timedelta(hours=2)
PIECE_BYTES = 1 << 28
ROUND = 64  # trajectories that a leader sends to another at a time


@dataclass(frozen=True)
class Parallel:
    """This rank's place. A leader is the first tensor, pipeline and context rank of its data-parallel replica."""

    rank: int
    world: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    expert_tensor: int  # ranks that share each expert
    expert_parallel: int  # ranks that experts are spread over
    leaders: list[int] = field(repr=False)  # the global rank that leads each data-parallel replica
    objects: Any = field(repr=False)  # a gloo group of all ranks: Python objects and small CPU tensors

    @property
    def is_leader(self) -> bool:
        return self.tp_rank == self.cp_rank == self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def speaks_for_replica(self) -> bool:
        """One rank a replica that holds its losses and log-probs: the first tensor and context rank of the last stage."""
        return self.tp_rank == self.cp_rank == 0 and self.is_last_stage

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier(group=self.objects)

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """The value that rank `source` passed, on every rank; what the others pass is ignored."""
        return self._from_ranks(value, [source])[0]

    def gather_from_leaders(self, local: list[T]) -> list[T]:
        """The leaders' lists, joined in data-parallel order, on every rank; what the others pass is ignored."""
        return [x for part in self._from_ranks(local, self.leaders) for x in part]

    def gather_from_speakers(self, local: list[T]) -> list[T]:
        """As `gather_from_leaders`, from the ranks that hold losses."""
        last = (self.pp_size - 1) * (self.world // self.pp_size)
        return [x for part in self._from_ranks(local, [r + last for r in self.leaders]) for x in part]

    def distribute(self, local: Sequence[Trajectory], counts: Sequence[int], owners: Sequence[int]) -> list[Trajectory]:
        """Send every trajectory to the replica that trains on it, and to no other: whole trajectories never meet on one host.

        `local`: a leader's own (what others pass is ignored); `counts`: how many each leader has; `owners`: the data-parallel
        rank that wants each of all trajectories, in the leaders' order, -1 for none. Returns this replica's, in that order, on
        each of its ranks; the texts of those that travelled, which no trainer reads, are empty. Collective.
        """
        first = sum(counts[: self.dp_rank])
        mine = list(zip(local, owners[first : first + len(local)], strict=True)) if self.is_leader else []
        wanted = [[t for t, owner in mine if owner == d] for d in range(self.dp_size)]
        most = int(self.max([float(max(map(len, wanted)))])[0])
        got: list[list[Trajectory]] = [[] for _ in range(self.dp_size)]
        for at in range(0, most, ROUND):  # a few at a time: what is on its way exists twice
            for source, part in enumerate(self._round([w[at : at + ROUND] for w in wanted])):
                got[source] += part
        return [t for part in got for t in part]

    def _round(self, wanted: list[list[Trajectory]]) -> list[list[Trajectory]]:
        """From each leader, what this replica wants of it: one message from leader to leader, and on to its replica."""
        me, peers = self.dp_rank, [r for r in self.replica(self.dp_rank) if r != self.rank]
        everyone = range(self.dp_size)
        # What a leader keeps for itself is packed for its peers only.
        outgoing = [flat.pack(wanted[d], texts=False) if wanted[d] and (d != me or peers) else bytearray() for d in everyone]
        sizes = torch.zeros(self.dp_size, self.dp_size, dtype=torch.int64)  # from, to
        if self.is_leader:
            sizes[me] = torch.tensor([len(m) for m in outgoing])
        if self.world > 1:
            dist.all_reduce(sizes, group=self.objects)
        incoming = [bytearray(int(sizes[d, me])) for d in everyone]
        if self.is_leader:
            incoming[me] = outgoing[me]
            _wait(
                *(w for d in everyone if d != me for w in self._transfer(dist.irecv, incoming[d], self.leaders[d])),
                *(w for d in everyone if d != me for w in self._transfer(dist.isend, outgoing[d], self.leaders[d])),
            )
            _wait(*(w for r in peers for m in incoming for w in self._transfer(dist.isend, m, r)))
        else:
            _wait(*(w for m in incoming for w in self._transfer(dist.irecv, m, self.leaders[me])))
        own = wanted[me] if self.is_leader else None
        return [own if d == me and own is not None else flat.unpack(incoming[d]) if incoming[d] else [] for d in everyone]

    def replica(self, dp_rank: int) -> list[int]:
        """The global ranks of a data-parallel replica; megatron-core's order is tp, cp, dp, pp."""
        size = self.tp_size * self.cp_size  # of a replica's stage, whose ranks follow each other
        return [i + size * (dp_rank + self.dp_size * pp) for pp in range(self.pp_size) for i in range(size)]

    def _transfer(self, act: Any, message: bytearray, rank: int) -> list[Any]:
        """Begin to send or receive a message in pieces that every transport takes."""
        if not message:
            return []
        whole = torch.frombuffer(message, dtype=torch.uint8)
        return [act(piece, rank, group=self.objects) for piece in whole.split(PIECE_BYTES)]

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """Elementwise maximum over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: list[float], op: Any) -> list[float]:
        if self.world == 1:
            return values
        x = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(x, op=op, group=self.objects)
        return x.tolist()

    def _from_ranks(self, value: Any, ranks: list[int]) -> list[Any]:
        """What each of `ranks` passed. Sizes go first, so that nobody receives more than there is."""
        if self.world == 1:
            return [value]
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) if self.rank in ranks else b""
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes, group=self.objects)
        out = []
        for r in ranks:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if r == self.rank else None
            buffer = torch.empty(int(sizes[r]), dtype=torch.uint8) if buffer is None else buffer
            dist.broadcast(buffer, src=r, group=self.objects)
            out.append(value if r == self.rank else pickle.loads(buffer.numpy().tobytes()))
        return out


def _wait(*work: Any) -> None:
    for w in work:
        w.wait()


def leave() -> None:
    """Give up every group but the world. Each gloo group has threads that wake a hundred times a second, so that those of
    actors long gone would take the machine."""
    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def init(cfg: RunConfig) -> Parallel:
    """Join the job that torchrun (or srun) describes in the environment and split it as `cfg.megatron` says.

    Without such an environment the process is a job of one. Raises UsageError if the number of processes does not fit.
    """
    m = cfg.megatron
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world != cfg.train.ranks:
        raise UsageError(f"train.ranks={cfg.train.ranks} but the job has {world} processes: start as many as the config says")
    if not dist.is_initialized():
        if world == 1 and "MASTER_ADDR" not in os.environ:
            dist.init_process_group(platform.backend(), store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        else:
            dist.init_process_group(platform.backend(), rank=rank, world_size=world, timeout=TIMEOUT)
    if parallel_state.is_initialized():  # a second actor in one process: tests of several layouts
        leave()
    parallel_state.initialize_model_parallel(
        m.tensor_parallel,
        m.pipeline_parallel,
        m.virtual_pipeline if m.virtual_pipeline > 1 else None,
        context_parallel_size=m.context_parallel,
        expert_model_parallel_size=m.expert_parallel,
        expert_tensor_parallel_size=m.expert_tensor,
        distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),
        create_gloo_process_groups=platform.has_cuda(),
    )
    platform.seed(cfg.seed)
    model_parallel_cuda_manual_seed(cfg.seed)
    # megatron-core's rank order is tp-cp-ep-dp-pp: replicas follow each other inside the first stage.
    return Parallel(
        rank=rank,
        world=world,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=m.tensor_parallel,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=m.pipeline_parallel,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=m.context_parallel,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=cfg.data_parallel,
        expert_tensor=m.expert_tensor,
        expert_parallel=m.expert_parallel,
        leaders=[d * m.tensor_parallel * m.context_parallel for d in range(cfg.data_parallel)],
        objects=dist.new_group(backend="gloo", timeout=TIMEOUT) if platform.has_cuda() else dist.group.WORLD,
    )
