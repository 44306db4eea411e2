"""Remake the table of docs/recipes.md from configs/ and the shapes of their models: python scripts/recipes_docs.py"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.cluster.nodes import Node
from megatron_mmsr1.cluster.placement import ENGINES, nodes_wanted, plan
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.estimate import dimensions, engine
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.memory import largest_held
from megatron_mmsr1.estimate.parameters import layout
from megatron_mmsr1.estimate.report import files_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "recipes.md"
TABLE = re.compile(r"(?<=<!-- recipes-table -->\n).*?(?=<!-- /recipes-table -->)", re.DOTALL)

# H100 SXM (NVIDIA's datasheet): dense bf16 and memory. What is reached of them is an assumption.
FLOPS, BANDWIDTH = 989e12, 3.35e12
TRAIN_SHARE, PREFILL_SHARE, DECODE_SHARE = 0.35, 0.4, 0.5


@dataclass(frozen=True, slots=True)
class Assumed:
    """Mean tokens a trajectory: the first prompt with its picture, what is sampled, what tools return."""

    prompt: int
    sampled: int
    observed: int


FVQA, MATHS = Assumed(1400, 400, 1500), Assumed(700, 500, 0)


def recipes() -> list[Path]:
    """The configs of real models."""
    return sorted((ROOT / "configs").glob("qwen*.yaml"))


def shape_file(cfg: RunConfig) -> Path:
    return ROOT / "configs" / "shapes" / f"{Path(cfg.model.path).name}.json"


def shape(cfg: RunConfig) -> dict:
    return json.loads(shape_file(cfg).read_text())


def sizes(cfg: RunConfig) -> Dimensions:
    return dimensions.of_files(files_of(cfg, shape_file(cfg)))


def assumed(cfg: RunConfig) -> Assumed:
    return FVQA if cfg.searches else MATHS


def active(cfg: RunConfig) -> int:
    """The parameters that a token passes through: of a mixture of experts, those of the experts that it is sent to."""
    s = shape(cfg)
    return s.get("active_parameters", s["parameters"])


def training_s(cfg: RunConfig) -> float:
    """FLOPs a token and parameter over the ranks' GPUs: 6 for forward and backward, 2 where activations are recomputed, 2 for
    the reference's pass and 2 for the old log-probs' (needed from the second update on)."""
    a, m = assumed(cfg), cfg.megatron
    tokens = cfg.data.prompts_per_step * cfg.data.group_size * (a.prompt + a.sampled + a.observed)
    passes = 6 + 2 * (m.recompute == "full") + 2 * (cfg.algorithm.kl_coef > 0) + 2 * (cfg.algorithm.updates_per_step > 1)
    return passes * active(cfg) * tokens / (cfg.train.ranks * FLOPS * TRAIN_SHARE)


def rollout_s(cfg: RunConfig) -> float:
    """All trajectories of an engine at once: prefill of what the group does not share, then a decoding step a sampled token,
    which reads the weights and the cached keys and values of every trajectory."""
    a, s = assumed(cfg), shape(cfg)
    engines, gpus = engine_count(cfg)
    here = cfg.data.prompts_per_step * cfg.data.group_size / engines
    prefill = 2 * active(cfg) * here * (a.prompt / cfg.data.group_size + a.observed) / (gpus * FLOPS * PREFILL_SHARE)
    head = s.get("head_dim") or s["hidden_size"] // s["num_attention_heads"]
    kv = 2 * s["num_hidden_layers"] * s["num_key_value_heads"] * head * 2 * (a.prompt + a.observed + a.sampled / 2)
    step = (2 * s["parameters"] + kv * here) / (gpus * BANDWIDTH * DECODE_SHARE)
    return prefill + a.sampled * step


def engine_count(cfg: RunConfig) -> tuple[int, int]:
    """(engines, GPUs of each) on nodes of eight."""
    nodes = [Node(f"n{i}", "10.0.0.1", 8) for i in range(nodes_wanted(cfg))]
    placed = plan(cfg, nodes).of(ENGINES)
    return len(placed), len(placed[0].gpus)


def row(path: Path) -> str:
    cfg = config.load(path)
    d = sizes(cfg)
    engines, gpus = engine_count(cfg)
    p, m = cfg.placement, cfg.megatron
    where = f"{p.trainer.nodes} x {p.trainer.gpus_per_node} GPUs TP{m.tensor_parallel} "
    where += f"PP{m.pipeline_parallel} " * (m.pipeline_parallel > 1) + f"CP{m.context_parallel} " * (m.context_parallel > 1)
    where += f"EP{m.expert_parallel} " * (m.expert_parallel > 1)
    where += f"DP{cfg.data_parallel}; "
    where += f"{engines} engines of {gpus} GPU{'s' if gpus > 1 else ''}"
    where += f" on {p.engines.nodes} nodes" if p.engines.nodes else " beside them"
    data = "FVQA" if cfg.searches else "open-r1 maths, 8k"
    batch = f"{cfg.data.prompts_per_step} x {cfg.data.group_size}"
    gib = f"{largest_held(cfg, d, layout(cfg, d)) / 2**30:.0f} / {engine.weights(cfg, d, gpus) / 2**30:.0f} GiB"
    times = f"{rollout_s(cfg):.0f} + {training_s(cfg):.0f} s"
    name = f"[{path.name}](../configs/{path.name})"
    return f"| {name} | {Path(cfg.model.path).name} | {data}, {batch} | {nodes_wanted(cfg)} | {where} | {gib} | {times} |"


def render() -> str:
    head = [
        "| recipe | model | data, batch | nodes | placement | memory a GPU: trainer / engine | step: rollout + training |",
        "| --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    return "\n".join([*head, *(row(p) for p in recipes())]) + "\n"


def main() -> None:
    PAGE.write_text(TABLE.sub(lambda _: render(), PAGE.read_text()))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
