"""Placement: every process has a node and GPUs that it shares with nobody, or a sentence says why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.cluster import nodes
from megatron_mmsr1.cluster.nodes import Node
from megatron_mmsr1.cluster.picture import picture, steps
from megatron_mmsr1.cluster.placement import ENGINES, JUDGE, SEARCH, SUMMARISER, TRAINER, gpus_wanted, nodes_wanted, plan
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError


def cfg(ranks: int, *extra: str) -> RunConfig:
    return config.load("configs/atlas.yaml", [f"train.ranks={ranks}", "megatron.tensor_parallel=1", *extra])


def machines(n: int, gpus: int) -> list[Node]:
    return [Node(f"n{i}", f"10.0.0.{i}", gpus) for i in range(n)]


@given(
    trainers=st.integers(1, 4),
    per_node=st.integers(1, 8),
    own=st.one_of(st.none(), st.integers(1, 3)),
    count=st.integers(1, 9),
    each=st.integers(0, 4),
    gpus=st.sampled_from([0, 1, 4, 8]),
    colocated=st.booleans(),
)
def test_nothing_shares_a_gpu_and_nothing_is_lost(
    trainers: int, per_node: int, own: int | None, count: int, each: int, gpus: int, colocated: bool
) -> None:
    ranks = trainers * per_node
    settings = [
        f"placement.trainer.nodes={trainers}",
        f"placement.engines.count={count}",
        f"placement.engines.gpus_each={each}",
    ]
    settings += [f"placement.engines.nodes={own}"] if own and not colocated else []
    settings += [f"placement.colocated={str(colocated).lower()}", f"data.prompts_per_step={ranks}"]
    c = cfg(ranks, *settings)
    here = machines(nodes_wanted(c), gpus)
    try:
        found = plan(c, here)
    except UsageError as e:
        assert "placement" in str(e)
        return
    assert [p.index for p in found.of(TRAINER)] == list(range(ranks)) and len(found.of(ENGINES)) == count
    assert [p.node for p in found.of(TRAINER)] == [r // per_node for r in range(ranks)]
    assert [p.gpus for p in found.of(TRAINER)] == [(r % per_node,) if gpus else () for r in range(ranks)]
    for number, node in enumerate(here):
        roles = (TRAINER, ENGINES)
        for held in [roles] if not colocated else [(TRAINER,), (ENGINES,)]:
            used = [g for p in found.places if p.node == number and p.role in held for g in p.gpus]
            assert len(used) == len(set(used)) and all(g < node.gpus for g in used)
    engines = [p.node for p in found.of(ENGINES)]
    assert engines == sorted(engines)
    hosts = range(trainers, trainers + own) if own and not colocated else range(trainers)
    share = [engines.count(h) for h in hosts]
    assert sum(share) == count and max(share) - min(share) <= 1
    assert max(len([p for p in found.places if n == p.node]) for n in range(len(here))) and picture(c, found)


def test_a_machine_without_gpus_one_with_eight_and_one_that_is_shared() -> None:
    bare = plan(cfg(2), machines(1, 0))
    assert all(p.gpus == () for p in bare.places) and bare.steps == []
    eight = plan(cfg(4, "placement.engines.count=4"), machines(1, 8))
    assert [p.gpus for p in eight.of(ENGINES)] == [(4,), (5,), (6,), (7,)]
    shared = plan(cfg(1, "placement.colocated=true"), machines(1, 1))
    assert shared.of(TRAINER)[0].gpus == shared.of(ENGINES)[0].gpus == (0,)
    tensor = plan(cfg(4, "engine.sglang={tp_size: 4}"), machines(1, 8))
    assert tensor.of(ENGINES)[0].gpus == (4, 5, 6, 7)


def test_the_steps_of_a_job() -> None:
    c = cfg(4, "placement.trainer.nodes=2", "placement.engines.nodes=1", "placement.search=2")
    found = plan(c, machines(3, 8))
    assert steps(found) == "trainer n0,n1\nengines n2"
    assert found.node(found.of(SEARCH)[0]).name == "n2"
    same = plan(cfg(2, "placement.trainer.nodes=2"), machines(2, 8))
    assert steps(same) == "trainer n0,n1\nengines n0"


SUMMARISER_OF = ["search.summarise={backend: openai, model: big}", "placement.summariser.model=big"]


def test_a_summariser_stands_behind_the_engines_or_on_a_node_of_its_own() -> None:
    here = plan(cfg(2, *SUMMARISER_OF, "placement.summariser.sglang={tp_size: 4}"), machines(1, 8))
    assert here.of(SUMMARISER)[0].gpus == (3, 4, 5, 6)  # after two ranks and an engine
    own = cfg(2, *SUMMARISER_OF, "placement.summariser.node=1")
    assert nodes_wanted(own) == 2
    apart = plan(own, machines(2, 8))
    assert apart.of(SUMMARISER)[0].node == 1 and apart.of(SUMMARISER)[0].gpus == (0,)
    assert steps(apart) == "trainer n0\nengines n0,n1" and "summariser" in picture(own, apart)
    with pytest.raises(UsageError, match=r"3 of them taken, and placement\.summariser wants 2"):
        plan(cfg(2, *SUMMARISER_OF, "placement.summariser.gpus=2"), machines(1, 4))


def test_a_judge_stands_behind_the_summariser() -> None:
    here = plan(cfg(2, *SUMMARISER_OF, "placement.judge={model: big, gpus: 2}"), machines(1, 8))
    assert here.of(SUMMARISER)[0].gpus == (3,) and here.of(JUDGE)[0].gpus == (4, 5)
    assert not plan(cfg(2, "placement.judge.model=big", "algorithm.name=sft"), machines(1, 8)).of(JUDGE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["placement.summariser.model=big"], "it needs search.summarise.backend=openai"),
        (["placement.trainer.nodes=3"], "train.ranks=4 do not divide over placement.trainer.nodes=3"),
        (["placement.trainer.gpus_per_node=8"], "set train.ranks to nodes x gpus_per_node"),
        (["placement.colocated=true", "placement.engines.nodes=1"], "leave placement.engines.nodes out"),
        (["placement.colocated=true", "engine.urls=[http://x]"], "engine.urls names some that run already"),
        (["placement.enginess.count=2"], "engines"),
    ],
)
def test_what_cannot_be_is_refused_with_the_config(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cfg(4, *settings)


@pytest.mark.parametrize(
    ("settings", "count", "gpus", "said"),
    [
        (["placement.trainer.nodes=2"], 1, 8, "placement wants 2 nodes, the job has 1"),
        (["placement.search=1"], 1, 8, "placement.search=1: the nodes are numbered 0 to 0"),
        ([], 1, 2, "node n0 has 2 GPUs for 4 ranks"),
        (["placement.engines.count=5"], 1, 8, "lower placement.engines.count"),
        (["placement.engines.gpus_each=8"], 1, 8, "do not fit"),
    ],
)
def test_what_does_not_fit_the_nodes_is_said(settings: list[str], count: int, gpus: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(cfg(4, *settings), machines(count, gpus))


def test_gpus_that_a_job_must_ask_for() -> None:
    base = ["placement.trainer.gpus_per_node=4"]
    assert gpus_wanted(cfg(4, *base)) == 4
    assert gpus_wanted(cfg(4, *base, "placement.engines={count: 4, gpus_each: 1}")) == 8
    assert gpus_wanted(cfg(4, *base, "placement.engines={count: 4, gpus_each: 2, nodes: 1}")) == 8
    assert gpus_wanted(cfg(4, *base, "placement.engines={count: 1, gpus_each: 4}", "placement.colocated=true")) == 4


def test_the_places_of_ranks_are_megatron_core_s() -> None:
    """Tensor ranks follow each other, then context ranks, then replicas, then stages."""
    split = [f"megatron.{kind}_parallel=2" for kind in ("tensor", "context", "pipeline")]
    c = cfg(16, *split, "placement.trainer.nodes=2", "placement.engines.nodes=1")
    shown = picture(c, plan(c, machines(3, 8)))
    assert "16 ranks as TP2 x PP2 x DP2 x CP2" in shown
    for rank, place in ((0, "tp 0, pp 0, dp 0, cp 0, leads a replica"), (3, "tp 1, pp 0, dp 0, cp 1")):
        assert f"rank {rank} ({place})" in shown
    assert "rank 4 (tp 0, pp 0, dp 1, cp 0, leads a replica)" in shown and "rank 14 (tp 0, pp 1, dp 1, cp 1)" in shown


def test_the_nodes_of_this_machine_and_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes.of_job({"CUDA_VISIBLE_DEVICES": "0,3"})[0].gpus == 2
    assert nodes.of_job({"CUDA_VISIBLE_DEVICES": ""})[0].gpus == 0
    assert nodes.slurm_gpus({"SLURM_GPUS_ON_NODE": "8"}) == nodes.slurm_gpus({"SLURM_GPUS_PER_NODE": "gpu:h100:8"}) == 8
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="scontrol is not on PATH"):
        nodes.of_job({"SLURM_JOB_NODELIST": "n[1-2]"})
