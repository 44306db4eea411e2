"""Engines that run already: used whatever version they hold, refused where they serve another model. Real engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from engine_fixtures import transformers_engine  # noqa: F401

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engines.base import Control
from megatron_mmsr1.sync.held import require_model


@pytest.fixture(params=["sglang", "transformers"])
def control(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Control:
    """Of an engine of each kind, which holds "random" as version 40000."""
    name = "engine" if request.param == "sglang" else "transformers_engine"
    found = engines.get(request.param).control(request.getfixturevalue(name).url)
    found.load(checkpoints["random"], 40_000)
    return found


def test_the_version_is_taken_as_it_is(control: Control, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert require_model([control], checkpoints["random"], "engine.urls", weights=True) == 40_000
    copied = shutil.copytree(checkpoints["random"], tmp_path / "copy")  # another directory, the same weights
    assert require_model([control], copied, "engine.urls", weights=True) == 40_000


def test_other_weights_of_the_same_model_do_only_for_who_replaces_them(
    control: Control, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    require_model([control], checkpoints["other"], "engine.urls", weights=False)
    with pytest.raises(UsageError, match="whose weights are not those of") as e:
        require_model([control], checkpoints["other"], "engine.urls", weights=True)
    assert all(str(x) in str(e.value) for x in (control.url, checkpoints["random"], checkpoints["other"]))


@pytest.mark.parametrize(
    ("wrong", "said"), [("tensors", "has other shapes"), ("architecture", "a Qwen2VL"), ("tokenizer", "tok")]
)
def test_another_model_is_refused_for_whatever_use(
    control: Control, checkpoints: dict[str, Path], tmp_path: Path, wrong: str, said: str
) -> None:
    model = tmp_path / "model"
    if wrong == "tensors":
        tiny_checkpoint.write(model, hidden=128)
        shutil.copyfile(checkpoints["random"] / "tokenizer.json", model / "tokenizer.json")
    else:
        shutil.copytree(checkpoints["random"], model)
        file = model / ("config.json" if wrong == "architecture" else "tokenizer.json")
        held = json.loads(file.read_text())
        changed = {"architectures": ["Qwen2VLForConditionalGeneration"]} if wrong == "architecture" else {"truncation": None}
        file.write_text(json.dumps(held | changed))
    for weights in (False, True):
        with pytest.raises(UsageError, match=said) as e:
            require_model([control], model, "engine.urls", weights=weights)
        assert control.url in str(e.value) and str(model) in str(e.value)


def test_engines_of_different_versions_are_not_one_model(engine: Any, transformers_engine: Any, checkpoints) -> None:  # noqa: F811
    controls = [engines.get("sglang").control(engine.url), engines.get("transformers").control(transformers_engine.url)]
    for version, c in enumerate(controls, 41_000):
        c.load(checkpoints["random"], version)
    with pytest.raises(UsageError, match=r"version 41000.*version 41001"):
        require_model(controls, checkpoints["random"], "engine.urls", weights=True)


def test_nobody_there(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(RunError, match=r"engine\.urls: http://127\.0\.0\.1:9 does not answer"):
        require_model([engines.get("sglang").control("http://127.0.0.1:9")], checkpoints["random"], "engine.urls", weights=True)
