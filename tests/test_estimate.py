"""What `mmsr1 estimate` counts before a run. Against real ranks: benchmarks/estimate.py."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.cli import main
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate import dimensions, layouts, memory
from megatron_mmsr1.estimate.batch import Batch, Work, work
from megatron_mmsr1.estimate.devices import DEVICES
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.memory import shard
from megatron_mmsr1.estimate.parameters import layout, of_stage, whole
from megatron_mmsr1.estimate.report import Asked, estimate, files_of
from megatron_mmsr1.estimate.step import Rates, step

ROOT = Path(__file__).parent.parent
SHAPES = sorted((ROOT / "configs" / "shapes").glob("*.json"))


def cfg(ranks: int = 1, *, model: dict[str, Any] | None = None, **megatron: Any) -> config.RunConfig:
    return config.parse(
        {
            "model": {"path": "nowhere"} | (model or {}),
            "data": {"prompts_per_step": 64, "group_size": 8},
            "algorithm": {"kl_coef": 0.0},
            "megatron": {"tokens_per_microbatch": 16384} | megatron,
            "train": {"ranks": ranks},
        }
    )


def sizes(path: Path) -> Dimensions:
    return dimensions.of_files(files_of(cfg(), path))


DIMENSIONS = [sizes(p) for p in SHAPES]


@pytest.mark.parametrize("path", SHAPES, ids=lambda p: p.stem)
def test_parameters_of_released_models(path: Path) -> None:
    """As their checkpoints' indexes tell them (`parameters` in the shape)."""
    assert whole(sizes(path)).total == json.loads(path.read_text())["parameters"]


@given(
    d=st.sampled_from(DIMENSIONS), tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 4]), dp=st.sampled_from([1, 2, 4])
)
def test_what_is_split_adds_up(d: Dimensions, tp: int, pp: int, dp: int) -> None:
    """All stages' ranks together hold the model once, but for what stands whole on every tensor rank and tied embeddings
    twice."""
    c = cfg(tp * pp * dp, tensor_parallel=tp, pipeline_parallel=pp)
    at = layout(c, d)
    total = tp * sum(of_stage(d, at, i).total for i in range(pp))
    first = of_stage(d, at, 0)
    norms = d.layers * (2 * d.hidden + (2 * d.head if d.qk_norm else 0) + d.hidden * d.experts) + d.hidden
    repeated = (tp - 1) * (norms + first.tower + first.merger)
    twice = d.vocabulary * d.hidden if d.tied and pp > 1 else 0
    assert total == whole(d).total + repeated + twice


@given(d=st.sampled_from(DIMENSIONS), dtype=st.sampled_from(["bfloat16", "float32"]), dp=st.sampled_from([1, 2, 8]))
def test_bytes_a_parameter(d: Dimensions, dtype: str, dp: int) -> None:
    """Mixed precision: 2 + 4 + 12 / DP bytes; float32 has no master weights: 4 + 4 + 8 / DP. Frozen: the weights alone."""
    c = cfg(dp, model={"dtype": dtype, "freeze_vision": True})
    p = whole(d)
    trained = p.language + p.experts + p.embeddings
    w, state = (2, 12) if dtype == "bfloat16" else (4, 8)
    assert memory.held(c, d, layout(c, d), 0) == {
        "weights": w * p.total,
        "gradients": 4 * trained,
        "optimizer": state * trained // dp,
    }


def test_bytes_of_adapters() -> None:
    """Adapters alone are trained, and the reference is no second model. Qwen2.5-VL-7B at rank 16 has, in each of 28 layers,
    16 * ((3584 + 4608) + (3584 + 3584) + (3584 + 37888) + (18944 + 3584)) = 1,269,760 parameters of them."""
    d = next(d for d in DIMENSIONS if (d.layers, d.hidden) == (28, 3584) and d.tower and d.tower.kind == "qwen2_5_vl")
    lora = {"rank": 16, "alpha": 32}
    c = cfg(4, model={"lora": lora}, tensor_parallel=2, sequence_parallel=True)
    adapters = 28 * 1_269_760 // 2
    found = memory.held(c, d, layout(c, d), 0)
    assert found == {
        "weights": 2 * (of_stage(d, layout(c, d), 0).total + adapters),
        "gradients": 4 * adapters,
        "optimizer": 12 * adapters // 2,
    }
    c.algorithm.kl_coef = 0.1
    assert "reference" not in memory.held(c, d, layout(c, d), 0)
    c.algorithm.reference_interval = 5
    assert memory.held(c, d, layout(c, d), 0)["reference"] == found["weights"]
    trained_tower = cfg(4, model={"lora": lora, "freeze_vision": False}, tensor_parallel=2)
    trained_tower.algorithm.kl_coef = 0.1
    assert memory.held(trained_tower, d, layout(c, d), 0)["reference"] == found["weights"] - 2 * adapters


LAYERS = st.sampled_from(["cpu", "transformer-engine"])


def peaks(c: config.RunConfig, d: Dimensions, w: Work, layers: Any) -> list[int]:
    return [r.peak.total for r in memory.ranks(c, d, layout(c, d), w, layers)]


def test_adapters_of_experts_are_refused() -> None:
    shape = next(p for p, d in zip(SHAPES, DIMENSIONS, strict=True) if d.experts)
    with pytest.raises(UsageError, match=r"set model\.lora\.targets=\[qkv_proj, o_proj\]"):
        estimate(cfg(model={"lora": {"rank": 16, "alpha": 32}}), Asked(DEVICES["H100"], config_json=shape))


@given(d=st.sampled_from(DIMENSIONS), layers=LAYERS, tp=st.sampled_from([1, 2, 4]))
def test_adapters_need_less_than_full_training(d: Dimensions, layers: Any, tp: int) -> None:
    lora = {"rank": 16, "alpha": 32, "targets": ["qkv_proj", "o_proj"]}
    plain, adapted = (cfg(tp, model=m, tensor_parallel=tp) for m in ({}, {"lora": lora}))
    w = work(plain, Batch())
    assert peaks(adapted, d, w, layers)[0] < peaks(plain, d, w, layers)[0]
    rates = Rates(1e12, 1e12, 1e11, 1e11)
    one, two = (step(c, d, layout(c, d), w, rates, layers) for c in (adapted, plain))
    assert one["layers"] < two["layers"] and one["gradient sums"] < two["gradient sums"]


def evenly(d: Dimensions) -> Dimensions:
    """Whose tower and output layer cost nothing."""
    return replace(d, first=0, beside=(0.0, 0.0))


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, (7, 7, 7, 7)),
        ({"pipeline_split": [4, 8, 8, 8]}, (4, 8, 8, 8)),
        ({"virtual_pipeline": 2, "pipeline_split": [1, 4, 4, 4, 3, 4, 4, 4]}, (4, 8, 8, 8)),
    ],
)
def test_uneven_stages(settings: dict[str, Any], stages: tuple[int, ...]) -> None:
    d = evenly(next(d for d in DIMENSIONS if d.layers == 28))
    assert layout(cfg(4, pipeline_parallel=4, **settings), d).stages == stages


def test_more_stages_than_layers_are_refused() -> None:
    d = next(d for d in DIMENSIONS if d.layers == 28)
    with pytest.raises(UsageError, match="the model's 28 layers are too few for 29 chunks"):
        layout(cfg(29, pipeline_parallel=29), d)


@given(d=st.sampled_from(DIMENSIONS), layers=LAYERS, recompute=st.sampled_from(["none", "selective", "full"]))
def test_more_tensor_parallelism_never_needs_more(d: Dimensions, layers: Any, recompute: str) -> None:
    """Of any term; sequence parallelism less than none, but for the buffer that it gathers into."""
    found = []
    for tp in (1, 2, 4):
        c = cfg(tp, tensor_parallel=tp, recompute=recompute)
        at = layout(c, d)
        found.append(memory.ranks(c, d, at, work(c, Batch()), layers)[0].phases)
    for less, more in zip(found[1:], found, strict=False):
        for p, q in zip(less, more, strict=True):
            assert p.total <= q.total
            assert all(n <= q.terms.get(name, 0) for name, n in p.terms.items() if name in memory.held(c, d, at, 0))


def test_memory_of_spread_experts() -> None:
    """TP2 x EP4 over 8 ranks: of the rest a half, whose optimizer 4 ranks share; of the experts a quarter, shared by 2."""
    d = next(d for d in DIMENSIONS if d.experts)
    c = cfg(8, tensor_parallel=2, sequence_parallel=True, expert_parallel=4)
    p = of_stage(d, layout(c, d), 0)
    experts = d.layers * 3 * d.hidden * d.ffn * d.experts // 4
    assert p.experts == experts
    rest = p.language + p.embeddings
    assert memory.held(c, d, layout(c, d), 0)["optimizer"] == 12 * (rest // 4 + experts // 2)


def test_inputs_of_layers_on_the_host_are_not_the_gpu_s() -> None:
    d = DIMENSIONS[0]
    found = []
    for offload in ({}, {"activations": True}):
        c = cfg(recompute="full", offload=offload)
        ranks = memory.ranks(c, d, layout(c, d), work(c, Batch()), "transformer-engine")
        found.append(next(p for p in ranks[0].phases if p.name == "train").terms["activations"])
    # What is left is a layer at work, whole, and what comes before and after the layers.
    assert found[0] - found[1] == d.layers * 2 * d.hidden * work(cfg(recompute="full"), Batch()).tokens


def test_moments_on_the_host_and_in_fewer_bits_leave_the_master_weights() -> None:
    """Under bfloat16 4 bytes a parameter of master weights, and 8 of moments, or as many as stay on the GPU."""
    d = DIMENSIONS[0]
    each = shard(whole(d), layout(cfg(), d))
    for offload, dtype, wanted in ((0, "float32", 12), (1, "float32", 4), (0.5, "float32", 8), (0, "bfloat16", 8)):
        c = config.parse(cfg(offload={"optimizer": offload}).model_dump() | {"optimizer": {"moments_dtype": dtype}})
        c = c.model_copy(update={"model": c.model.model_copy(update={"freeze_vision": False})})
        assert memory.held(c, d, layout(c, d), 0)["optimizer"] == wanted * each


@given(d=st.sampled_from(DIMENSIONS), dp=st.sampled_from([1, 2]))
def test_context_parallel_ranks_share_tokens_and_optimizer(d: Dimensions, dp: int) -> None:
    """Two of them in the place of two replicas hold the same for certain, and half of a micro-batch's tokens each."""
    split, more = cfg(2 * dp, context_parallel=2), cfg(2 * dp)
    assert memory.held(split, d, layout(split, d), 0) == memory.held(more, d, layout(more, d), 0)
    assert work(split, Batch()).tokens * 2 == work(more, Batch()).tokens
    assert peaks(split, d, work(split, Batch()), "cpu")[0] < peaks(more, d, work(more, Batch()), "cpu")[0]


@given(d=st.sampled_from(DIMENSIONS), layers=LAYERS, tp=st.sampled_from([1, 4]))
def test_full_recompute_needs_least(d: Dimensions, layers: Any, tp: int) -> None:
    none, full = (
        peaks(c, d, work(c, Batch()), layers) for c in (cfg(tp, tensor_parallel=tp, recompute=r) for r in ("none", "full"))
    )
    assert full[0] < none[0]


@given(d=st.sampled_from(DIMENSIONS), layers=LAYERS, pp=st.sampled_from([2, 4]))
def test_activations_in_flight(d: Dimensions, layers: Any, pp: int) -> None:
    """Under 1F1B the first of P stages holds P micro-batches, whose layers are a P-th each: as many as one rank alone, and the
    next stage one micro-batch less."""
    d = evenly(d)
    alone, split = cfg(1, recompute="full"), cfg(pp, pipeline_parallel=pp, recompute="full")
    w = work(alone, Batch(picture=0))
    one = memory.ranks(alone, d, layout(alone, d), w, layers)[0]
    many = memory.ranks(split, d, layout(split, d), w, layers)
    kept = [next(p for p in r.phases if p.name == "train").terms.get("activations", 0) for r in many]
    assert kept == sorted(kept, reverse=True)
    assert w.count >= pp and one.layers == pp * many[0].layers


RATES = Rates(300e12, 3e12, 400e9, 50e9)


@given(d=st.sampled_from(DIMENSIONS), layers=LAYERS)
def test_time_splits_over_ranks(d: Dimensions, layers: Any) -> None:
    """Twice the replicas take half of the arithmetic; recompute takes a third more of the layers' (4 passes in the place of
    3)."""
    one, two, again = (cfg(n, recompute=r) for n, r in ((1, "none"), (2, "none"), (1, "full")))
    t = [step(c, d, layout(c, d), work(c, Batch()), RATES, layers) for c in (one, two, again)]
    assert t[1]["layers"] == pytest.approx(t[0]["layers"] / 2)
    assert t[2]["layers"] == pytest.approx(t[0]["layers"] * 4 / 3)
    assert t[0]["tensor parallel"] == t[0]["data parallel"] == t[0]["bubble"] == 0 and t[1]["data parallel"] > 0


def test_six_operations_a_weight_and_token() -> None:
    """Forwards 2, backwards 4 (arXiv 2001.08361, section 2.1), of a layer's matrices; experts as far as a token is sent to
    them."""
    d = next(d for d in DIMENSIONS if d.experts)
    c = cfg()
    w = work(c, Batch(picture=0))
    t = step(c, d, layout(c, d), w, RATES, "transformer-engine")
    matrices = d.hidden * (d.query + 2 * d.keys) + d.query * d.hidden + 3 * d.hidden * d.ffn * d.chosen + d.hidden * d.experts
    assert t["layers"] * RATES.flops == pytest.approx(6 * d.layers * matrices * w.tokens * w.count)


def test_the_bubble_is_a_micro_batch_a_stage_less_one() -> None:
    d = dataclasses.replace(DIMENSIONS[0], tower=None)
    c = cfg(4, pipeline_parallel=4)
    w = work(c, Batch(picture=0))
    t = step(c, d, layout(c, d), w, RATES, "transformer-engine")
    once = t["bubble"] + t["optimizer"] + t["data parallel"]
    assert t["bubble"] == pytest.approx((sum(t.values()) - once) * 3 / w.count)


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ROOT / "configs" / "shapes" / "Qwen2.5-VL-7B-Instruct.json"
    recipe = str(ROOT / "configs" / "qwen2.5-vl-7b-fvqa.yaml")
    assert main(["estimate", recipe, "--config-json", str(shape), "--json", "--memory-gib", "20", "--rollout-s", "60"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and found["rollout_seconds"] == 60 and found["measured_on_gpu"] is False
    assert found["largest"]["bytes"] == max(p["bytes"] for r in found["ranks"] for p in r["phases"].values())
    assert main(["estimate", recipe, "--config-json", str(shape), "--gpu", "H200"]) == 0
    said = capsys.readouterr().out
    assert "which fits H200" in said and "On a GPU none of this has been measured" in said and "(assumed)" in said
    assert main(["estimate", recipe, "--config-json", str(shape), "--gpu", "cpu"]) == 0
    assert "no rates of this device" in capsys.readouterr().out
    assert main(["estimate", recipe, "--config-json", "nowhere.json"]) == 2
    assert main(["estimate", recipe, "--config-json", str(shape), "--tflops", "-1"]) == 2


# ------------------------------------------------------------------------------------------------------------------ layouts
def recipe(name: str, *more: str) -> tuple[config.RunConfig, Path]:
    c = config.load(ROOT / "configs" / f"{name}.yaml", list(more))
    return c, ROOT / "configs" / "shapes" / f"{Path(c.model.path).name}.json"


def proposed(name: str, *more: str, gib: float = 80) -> tuple[config.RunConfig, list[layouts.Proposal]]:
    c, shape = recipe(name, *more)
    h100 = dataclasses.replace(DEVICES["H100"], memory=int(gib * 2**30))
    return c, layouts.proposals(c, Asked(h100, config_json=shape))


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b-fvqa", "qwen3-vl-30b-a3b-fvqa"])
def test_what_is_proposed_is_a_layout_that_a_run_takes(name: str) -> None:
    _, found = proposed(name)
    seconds = [round(p.seconds, 2) for p in found]
    assert seconds == sorted(seconds)
    for p in found:
        assert p.estimate.largest.peak.total <= 0.9 * 80 * 2**30 and p.why.endswith(".")
        assert config.load(ROOT / "configs" / f"{name}.yaml", p.settings).megatron == p.estimate.cfg.megatron


def test_less_memory_leaves_out_what_does_not_fit_it() -> None:
    _, every = proposed("qwen2.5-vl-7b-fvqa", gib=1000)
    _, some = proposed("qwen2.5-vl-7b-fvqa", gib=60)
    assert 0 < len(some) < len(every)
    fitting = [p for p in every if p.estimate.largest.peak.total <= 0.9 * 60 * 2**30]
    assert [p.settings for p in some] == [p.settings for p in fitting]
    with pytest.raises(UsageError, match=r"no layout of train\.ranks=16 fits"):
        proposed("qwen2.5-vl-7b-fvqa", gib=4)


def test_a_model_that_fits_one_gpu_is_not_split() -> None:
    """Every split costs exchange or waiting."""
    best = proposed("qwen2-vl-2b-maths")[1][0].estimate.cfg.megatron
    assert (best.tensor_parallel, best.pipeline_parallel) == (1, 1)


def test_experts_are_spread_only_where_there_are_some() -> None:
    assert {p.estimate.cfg.megatron.expert_parallel for p in proposed("qwen2.5-vl-7b-fvqa")[1]} == {1}
    assert {p.estimate.cfg.megatron.expert_parallel for p in proposed("qwen3-vl-30b-a3b-fvqa")[1]} >= {1, 2, 4, 8}


def test_a_group_of_experts_inside_a_node_exchanges_by_its_links() -> None:
    rates = Rates(1e14, 1e12, 4e11, 1e9)
    c, shape = recipe("qwen3-vl-30b-a3b-fvqa", "megatron.tensor_parallel=1", "megatron.sequence_parallel=false")
    d = sizes(shape)

    def spread(ranks: int) -> float:
        m = c.megatron.model_copy(update={"expert_parallel": ranks, "pipeline_parallel": 1})
        new = c.model_copy(update={"megatron": m})
        return step(new, d, layout(new, d), work(new, Batch()), rates, "transformer-engine")["expert parallel"]

    per_node = c.train.ranks // c.placement.trainer.nodes
    assert spread(2 * per_node) > 100 * spread(per_node)


def test_plan_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    _, shape = recipe("qwen3-vl-30b-a3b-fvqa")
    path = str(ROOT / "configs" / "qwen3-vl-30b-a3b-fvqa.yaml")
    assert main(["plan", path, "--layouts", "--config-json", str(shape)]) == 0
    out = capsys.readouterr().out
    assert "layouts of 32 ranks fit H100" in out and "megatron.tensor_parallel=" in out and "GiB in the fullest rank" in out
