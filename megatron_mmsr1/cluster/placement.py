"""Which process runs on which node and GPU: a pure function of the config and the nodes, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.cluster.nodes import Node
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.placement import ModelPlacement
from megatron_mmsr1.errors import UsageError

TRAINER, ENGINES, SEARCH, SUMMARISER, JUDGE = "trainer", "engines", "search", "summariser", "judge"
# SGLang's names of the number of GPUs that one engine takes.
_TENSOR_PARALLEL = ("tp_size", "tensor_parallel_size")


@dataclass(frozen=True, slots=True)
class Place:
    """One process: `index` counts those of its role (a rank, an engine), `node` is its number, `gpus` are device numbers."""

    role: str
    index: int
    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    nodes: tuple[Node, ...]
    places: tuple[Place, ...]

    def of(self, role: str) -> list[Place]:
        return [p for p in self.places if p.role == role]

    def node(self, place: Place) -> Node:
        return self.nodes[place.node]

    def nodes_of(self, *roles: str) -> list[Node]:
        """Each once, in order."""
        return [self.nodes[i] for i in sorted({p.node for p in self.places if p.role in roles})]

    @property
    def steps(self) -> list[tuple[str, list[Node]]]:
        """Slurm's steps beside the head's: what fails together. Empty where all is on the first node."""
        if len(self.nodes) == 1:
            return []
        found = [(TRAINER, self.nodes_of(TRAINER)), (ENGINES, self.nodes_of(ENGINES, SUMMARISER, JUDGE))]
        return [(name, nodes) for name, nodes in found if nodes]


def plan(cfg: RunConfig, nodes: Sequence[Node], *, trains: bool = True) -> Plan:
    """Ranks on the first nodes, in order; engines behind them, on nodes of their own or on the GPUs that ranks leave free.

    `trains`: False for what has no ranks, an evaluation. Raises UsageError with a sentence for every setting that does not fit
    the nodes.
    """
    p = cfg.placement
    problems = [*_counts(cfg, len(nodes))]
    if problems:
        raise UsageError("; ".join(problems))
    places: list[Place] = []
    per_node = cfg.train.ranks // p.trainer.nodes
    taken = dict.fromkeys(range(len(nodes)), 0)
    trains = trains and cfg.train.mode != "rollout-only"
    for rank in range(cfg.train.ranks if trains else 0):
        node, local = divmod(rank, per_node)
        on_gpu = _on_gpu(p.trainer.gpus_per_node, nodes[node])
        places.append(Place(TRAINER, rank, node, (local,) if on_gpu else ()))
        if on_gpu:
            taken[node] = local + 1
            if local >= nodes[node].gpus:
                problems.append(
                    f"node {nodes[node].name} has {nodes[node].gpus} GPUs for {per_node} ranks: lower train.ranks or raise "
                    "placement.trainer.nodes"
                )
    if _starts_engines(cfg):
        problems += _place_engines(cfg, nodes, places, taken)
    if starts_search(cfg):
        places.append(Place(SEARCH, 0, p.search))
    for role, model in models(cfg).items():
        problems += _place_model(role, model, nodes[: nodes_wanted(cfg)], places)
    if problems:
        raise UsageError("; ".join(dict.fromkeys(problems)))
    return Plan(tuple(nodes), tuple(places))


def nodes_wanted(cfg: RunConfig) -> int:
    """How many nodes a job of this config takes."""
    p = cfg.placement
    wanted = p.trainer.nodes + ((p.engines.nodes or 0) if _starts_engines(cfg) else 0)
    return max([wanted, 1, *((m.node or 0) + 1 for m in models(cfg).values())])


def models(cfg: RunConfig) -> dict[str, ModelPlacement]:
    """The language models beside the engines that the run starts, by role."""
    p, found = cfg.placement, dict[str, ModelPlacement]()
    if p.summariser.model and starts_search(cfg):
        found[SUMMARISER] = p.summariser
    if p.judge.model and _rolls_out(cfg):
        found[JUDGE] = p.judge
    return found


def starts_search(cfg: RunConfig) -> bool:
    """Whether the run has a search server of its own."""
    return cfg.search.url is None and cfg.searches and _rolls_out(cfg)


def gpus_wanted(cfg: RunConfig) -> int:
    """The most GPUs that one of those nodes must have, where the config says so; 0 where it leaves it to the nodes."""
    p = cfg.placement
    ranks = p.trainer.gpus_per_node or 0
    if not _starts_engines(cfg) or not p.engines.gpus_each:
        return ranks
    hosts = p.engines.nodes or p.trainer.nodes
    engines = -(-p.engines.count // hosts) * p.engines.gpus_each
    return max(ranks, engines) if p.engines.nodes or p.colocated else ranks + engines


def _starts_engines(cfg: RunConfig) -> bool:
    return not cfg.engine.urls and _rolls_out(cfg)


def _rolls_out(cfg: RunConfig) -> bool:
    return not cfg.algorithm.supervised and cfg.train.mode != "train-only"


def _counts(cfg: RunConfig, available: int) -> list[str]:
    p, wanted = cfg.placement, nodes_wanted(cfg)
    found: list[str] = []
    if wanted > available:
        found.append(f"placement wants {wanted} nodes, the job has {available}")
    if p.search >= wanted:
        found.append(f"placement.search={p.search}: the nodes are numbered 0 to {wanted - 1}")
    return found


def _on_gpu(said: int | None, node: Node) -> bool:
    return bool(said) or (said is None and node.gpus > 0)


def _place_engines(cfg: RunConfig, nodes: Sequence[Node], places: list[Place], taken: dict[int, int]) -> list[str]:
    p = cfg.placement
    problems: list[str] = []
    first, hosts = (p.trainer.nodes, p.engines.nodes) if p.engines.nodes else (0, p.trainer.nodes)
    free = dict.fromkeys(range(len(nodes)), 0) if p.colocated else dict(taken)
    for i in range(p.engines.count):
        node = first + i * hosts // p.engines.count
        each = gpus_of_an_engine(cfg, nodes[node])
        gpus = tuple(range(free[node], free[node] + each))
        free[node] += each
        places.append(Place(ENGINES, i, node, gpus))
        if gpus and gpus[-1] >= nodes[node].gpus:
            problems.append(
                f"node {nodes[node].name} has {nodes[node].gpus} GPUs: {taken[node] if not p.colocated else 0} for ranks and "
                f"{each} for each of its engines do not fit; lower placement.engines.count, raise placement.engines.nodes, or "
                "set placement.colocated=true"
            )
    return problems


def _place_model(role: str, model: ModelPlacement, nodes: Sequence[Node], places: list[Place]) -> list[str]:
    """Behind whatever else has GPUs of its node."""
    number = len(nodes) - 1 if model.node is None else model.node
    node = nodes[number]
    first = max((g + 1 for p in places if p.node == number for g in p.gpus), default=0)
    gpus = tuple(range(first, first + _gpus_each(model.gpus, model.sglang, node)))
    places.append(Place(role, 0, number, gpus))
    if gpus and gpus[-1] >= node.gpus:
        return [f"node {node.name} has {node.gpus} GPUs, {first} of them taken, and placement.{role} wants {len(gpus)}"]
    return []


def gpus_of_an_engine(cfg: RunConfig, node: Node) -> int:
    """What the config says, else its tensor-parallel size on a node that has GPUs."""
    return _gpus_each(cfg.placement.engines.gpus_each, getattr(cfg.engine, "sglang", {}), node)


def _gpus_each(said: int | None, native: Mapping[str, Any], node: Node) -> int:
    if said is not None:
        return said
    return next((int(native[k]) for k in _TENSOR_PARALLEL if k in native), 1) if node.gpus else 0
