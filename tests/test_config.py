"""Typed settings: a wrong key or value is refused, by name and with advice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig, load, parse
from megatron_mmsr1.errors import UsageError

MINIMAL = {"model": {"path": "m"}}


def run(tmp_path: Path, text: str = "model: {path: m}", *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load(path, overrides)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"modle": {}}, "unknown key modle: did you mean model?"),
        ({"data": {"prompts_per_setp": 3}}, "unknown key data.prompts_per_setp: did you mean prompts_per_step?"),
        ({"algorithm": {"kl_coeff": 3}}, "unknown key algorithm.kl_coeff: did you mean kl_coef?"),
        ({"reward": {"zzz": 3}}, "unknown key reward.zzz: known keys here: name, search_penalty"),
        ({"rollout": {"temperature": "hot"}}, "rollout.temperature"),
        ({"rollout": {"temperature": -1}}, "(got -1)"),
        ({"data": {"train": "one.parquet"}}, "data.train: a list is wanted: write data.train=[one.parquet]"),
        ({"optimizer": {"kl_coef": 0.1}}, "unknown key optimizer.kl_coef: did you mean algorithm.kl_coef?"),
        ({"search": {"text": {"backnd": "x"}}}, "unknown key search.text.backnd: did you mean backend?"),
        ({"search": {"text": {"usd_per_1000": 3}}}, "search.text: usd_per_1000=3 needs price_as_of"),
        ({"reward": {"search_penalty": 2}}, "reward.search_penalty: Input should be less than or equal to 1 (got 2)"),
        ({"protocol": {"max_rounds": 1}}, "protocol.max_rounds=1 leaves no turn to answer in after a search, and 3"),
        ({"protocol": {"max_turn_tokens": 9000}}, "protocol.max_turn_tokens=9000 is above max_response_tokens=8192"),
        ({"megatron": {"tokens_per_microbatch": 10}}, "tokens_per_microbatch=10 is less than one prompt and one turn"),
        ({"train": {"ranks": 3}, "megatron": {"context_parallel": 2}}, "tensor x pipeline x context parallel = 2"),
        ({"optimizer": {"lr": 1e-5, "min_lr": 1e-4}}, "optimizer.min_lr=0.0001 is above optimizer.lr=1e-05"),
        ({"reward": {"reward_mode": "em"}}, "'EM' or 'SubEM'"),
        ({"data": {"group_size": 1}}, "at least 2"),
        ({"train": {"ranks": 3}, "megatron": {"tensor_parallel": 2}}, "train.ranks=3 is not a multiple"),
        ({"megatron": {"sequence_parallel": True}}, "tensor_parallel > 1"),
        ({"train": {"mode": "train-only"}}, "needs train.replay"),
        ({"data": {"prompts_per_step": 3}, "train": {"ranks": 2}}, "does not divide over 2"),
        ({"model": {"path": "m", "min_pixels": 9000, "max_pixels": 5000}}, "model.min_pixels=9000 is above"),
    ],
)
def test_mistakes_are_explained(raw: dict, says: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(MINIMAL | raw, "run.yaml")
    assert says in str(e.value)
    assert str(e.value).startswith("run.yaml")


def test_all_mistakes_of_a_file_at_once() -> None:
    with pytest.raises(UsageError) as e:
        parse({"data": {"tran": []}, "rollout": {"retrys": 1}})
    for said in ("model: Field required", "did you mean train?", "did you mean retries?"):
        assert said in str(e.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=7", 7),
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=.5e-4", 5e-5),
        ("data.shuffle=false", False),
        ("data.train=[a, b]", ["a", "b"]),
        ("model.reference=null", None),
        ("search.corpus=null", None),
        ("name=nan", "nan"),
        ("name='1e5'", "1e5"),
        ('name="007"', "007"),
        ("engine.sglang.mem_fraction_static=0.7", 0.7),
        ("engine.sglang.chunked_prefill_size=1e3", 1000.0),
        ("protocol.prompts=a=b", "a=b"),
        ("optimizer.betas=[0.5, 0.6]", (0.5, 0.6)),
    ],
)
def test_overrides_keep_their_types(tmp_path: Path, override: str, value: object) -> None:
    found: object = run(tmp_path, "model: {path: m}", override)
    for key in override.split("=")[0].split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_beats_the_file(tmp_path: Path) -> None:
    cfg = run(tmp_path, "model: {path: m}\ntrain: {steps: 1}", "train.steps=2", "train.steps=3")
    assert cfg.train.steps == 3


def test_a_section_left_empty_can_be_overridden(tmp_path: Path) -> None:
    assert run(tmp_path, "model: {path: m}\ntrain:\n", "train.steps=2").train.steps == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("train.steps.x=3", "train.steps"),
        ("model.path.x=3", "path is not a section"),
        ("train.steps=[", "not valid YAML"),
        ("train.stepz=3", "did you mean steps?"),
    ],
)
def test_bad_overrides_are_explained(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UsageError) as e:
        run(tmp_path, "model: {path: m}", override)
    assert says in str(e.value)


def test_what_does_not_fit_together_is_told_with_the_rest_of_it() -> None:
    with pytest.raises(UsageError) as e:
        parse(MINIMAL | {"protocol": {"max_rounds": 1}, "optimizer": {"lr": 1e-5, "min_lr": 1e-4}}, "run.yaml")
    head, *lines = str(e.value).splitlines()
    assert head == "run.yaml:"
    assert {line.split("=")[0] for line in lines} == {"  protocol.max_rounds", "  optimizer.min_lr"}


def test_one_round_without_searches_is_a_plain_question() -> None:
    assert parse(MINIMAL | {"protocol": {"max_rounds": 1, "image_searches": 0, "text_searches": 0}})


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "a: \x07", "\tb: 1"])
def test_bad_yaml_is_told_by_file_and_place_alone(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"run\.yaml: not valid YAML: .+") as e:
        run(tmp_path, text)
    assert "<unicode string>" not in str(e.value) and "\n" not in str(e.value)


def test_a_file_that_is_no_utf_8_is_refused_by_its_byte(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(UsageError, match=r"run\.yaml: byte 8 is not UTF-8"):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "must be a mapping"), ("a: [", "not valid YAML"), ("", "must be a mapping")]
)
def test_files_that_are_no_config(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run(tmp_path, text)
    with pytest.raises(UsageError, match="no config at"):
        load(tmp_path / "gone.yaml")


@given(st.integers(1, 9), st.floats(1e-9, 1), st.booleans(), st.sampled_from(["EM", "SubEM"]), st.text(min_size=1, max_size=9))
def test_what_is_dumped_loads_equal(steps: int, lr: float, shuffle: bool, mode: str, name: str) -> None:
    raw = MINIMAL | {
        "name": name,
        "train": {"steps": steps},
        "optimizer": {"lr": lr},
        "data": {"shuffle": shuffle},
        "reward": {"reward_mode": mode},
    }
    cfg = parse(raw)
    assert parse(yaml.safe_load(config.dump(cfg))) == cfg


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configurations_that_ship_are_valid(path: Path) -> None:
    assert load(path).model.path


def test_data_parallel_is_what_the_other_axes_leave() -> None:
    cfg = parse(MINIMAL | {"train": {"ranks": 16}, "megatron": {"tensor_parallel": 2, "pipeline_parallel": 4}})
    assert cfg.data_parallel == 2


def test_settings_are_read_without_torch() -> None:
    code = "import sys, megatron_mmsr1.config, megatron_mmsr1.protocol, megatron_mmsr1.reward.mmsearch as m\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'megatron.core', 'sglang')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("said", ["24:00:00", "00:40:00", "2-12", "1:30"])
def test_a_time_is_no_number_in_base_60(tmp_path: Path, said: str) -> None:
    assert run(tmp_path, f"model: {{path: m}}\nslurm: {{time: {said}}}").slurm.time == said
    assert run(tmp_path, "model: {path: m}", f"slurm.time={said}").slurm.time == said
    assert parse(yaml.safe_load(config.dump(run(tmp_path, "model: {path: m}", f"slurm.time={said}")))).slurm.time == said
