"""`model.lora` in a config, and in a run from its first step to what is exported. Its numbers: tests/megatron_cases/lora.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fixtures import COLD_START, ONE_RANK, ROOT, metrics, mmsr1
from safetensors.torch import load_file

from megatron_mmsr1 import config
from megatron_mmsr1.config.affects import differing
from megatron_mmsr1.errors import UsageError

LORA = {"rank": 8, "alpha": 16}


def cfg(model: dict[str, Any], **sections: Any) -> config.RunConfig:
    return config.parse({"model": {"path": "nowhere"} | model, **sections})


@pytest.mark.parametrize(
    ("model", "sections", "said"),
    [
        ({"lora": LORA, "freeze": ["language"]}, {}, "model.freeze keeps as it is: leave language out of it"),
        (
            {"lora": {"rank": 3, "alpha": 1}},
            {"megatron": {"tensor_parallel": 2}, "train": {"ranks": 2}},
            r"model.lora.rank=3 does not divide over megatron.tensor_parallel=2",
        ),
        ({"lora": LORA | {"targets": ["o_proj", "o_proj"]}}, {}, "names one twice"),
        ({"lora": LORA | {"dropout": 0.1}}, {}, "unknown key model.lora.dropout: known keys here: rank, alpha, targets"),
        ({"lora": LORA | {"targets": ["q_proj"]}}, {}, "model.lora.targets.0: .*'qkv_proj'"),
    ],
)
def test_what_does_not_fit_is_refused(model: dict[str, Any], sections: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        cfg(model, **sections)


def test_adapters_leave_the_rest_frozen_and_belong_to_the_experiment() -> None:
    plain, one, other = cfg({}), cfg({"lora": LORA}), cfg({"lora": LORA | {"rank": 4}})
    assert one.model.frozen == {"tower", "merger", "language", "embeddings"}
    assert cfg({"lora": LORA, "freeze_vision": False}).model.frozen == {"language", "embeddings"}
    assert differing(one, other) == ["model.lora.rank"]
    assert "model.lora.rank" in differing(plain, one)


def test_a_run_with_adapters(tmp_path: Path) -> None:
    """The whole model that it leaves, and the adapters alone."""
    out = tmp_path / "run"
    given = ["configs/atlas-sft.yaml", f"model.path={COLD_START}", f"output={out}", *ONE_RANK, "train.steps=2"]
    given += ["sft.examples_per_step=4", "optimizer.warmup_steps=0", "model.lora.alpha=16"]
    done = mmsr1("sft", *given, "model.lora.rank=8")
    assert not done.returncode, done.stderr
    rows = metrics(out)
    assert [r["step"] for r in rows] == [0, 1] and all(r["grad_norm"] > 0 for r in rows)
    assert "Language model: adapters of rank 8, merged into qkv_proj" in (out / "model" / "README.md").read_text()
    refused = mmsr1("sft", *given, "model.lora.rank=4")
    assert refused.returncode == 2 and "another configuration; differing: model.lora.rank" in refused.stderr
    done = mmsr1("export", str(out), str(tmp_path / "adapter"), "--adapter")
    assert not done.returncode, done.stderr
    adapters = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    before, after = (load_file(d / "model.safetensors") for d in (ROOT / COLD_START, out / "model"))
    for name, weight in before.items():
        # transformers' modules, as peft has them, and the checkpoint's names.
        module = f"base_model.model.{name.replace('model.layers', 'model.language_model.layers').removesuffix('.weight')}"
        a, b = (adapters.pop(f"{module}.lora_{x}.weight", None) for x in "AB")
        if a is None or b is None:
            assert torch.equal(after[name], weight), name
        else:
            assert torch.equal(after[name], weight + 2 * (b @ a)) and b.any(), name
    assert not adapters
