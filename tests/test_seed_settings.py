"""The two originals' settings as ours: what they become exists, every value arrives, and nothing is dropped unsaid."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import seed_settings  # noqa: E402
from seed_tables import MMSEARCH_R1, MMSEARCH_R1_BELOW, OPEN_R1, A, Only, Read, Refused, To  # noqa: E402

STEPS = ["trainer.total_training_steps=10"]
# The names that MMSearch-R1's script sets (its repository at 583c6b4), beside the data, which depend on who runs it.
ITS_SCRIPT = f"""
algorithm.adv_estimator=grpo data.train_batch_size=32 data.max_prompt_length=4096 data.max_response_length=2048
data.image_key=images {A}actor.optim.lr=2e-6
{A}actor.optim.lr_sigmoid_decay_warmup=True {A}actor.optim.lr_sigmoid_decay_ratio=0.95
{A}actor.optim.lr_sigmoid_decay_warmup_steps=45 {A}model.use_remove_padding=True {A}actor.ppo_mini_batch_size=32
{A}actor.entropy_coeff=0 {A}actor.ppo_micro_batch_size_per_gpu=8 {A}actor.use_multi_turn_response_mask=True
{A}actor.use_kl_loss=True {A}actor.kl_loss_coef=0.001 {A}actor.kl_loss_type=low_var_kl
{A}model.enable_gradient_checkpointing=True
{A}actor.fsdp_config.param_offload=False {A}actor.fsdp_config.optimizer_offload=False
{A}rollout.log_prob_micro_batch_size_per_gpu=16 {A}rollout.tensor_model_parallel_size=1 {A}rollout.name=vllm_multiturn_mmsearch
{A}rollout.gpu_memory_utilization=0.6 {A}rollout.enable_chunked_prefill=False {A}rollout.enforce_eager=False
{A}rollout.free_cache_engine=False {A}rollout.n=4 {A}rollout.max_gen_round=3 {A}rollout.response_length_total=8192
{A}rollout.search.topk=5 {A}rollout.search.image_search_limit=1 {A}rollout.search.text_search_limit=2
{A}rollout.search.parallel_tool_call=True {A}rollout.search.parallel_tool_call_threads=8
{A}ref.log_prob_micro_batch_size_per_gpu=16 {A}ref.fsdp_config.param_offload=True algorithm.kl_ctrl.kl_coef=0.001
trainer.critic_warmup=0 trainer.logger=['console','wandb'] trainer.project_name=p trainer.experiment_name=e
trainer.n_gpus_per_node=8 trainer.nnodes=1 trainer.save_freq=100 trainer.test_freq=100 trainer.total_epochs=30
+trainer.search_penalty=0.1 +trainer.format_penalty=0.1 +trainer.reward_mode=EM +trainer.val_before_train=True
+algorithm.filter_groups.enable=False
"""
# The flags of open-r1-multimodal's training script (its repository at 232b7ba), beside the data.
ITS_FLAGS = """
--deepspeed scripts/zero3.json --output_dir checkpoints/x --model_name_or_path Qwen/Qwen2-VL-2B-Instruct
--max_prompt_length 8192 --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --logging_steps 1 --bf16
--report_to wandb
--gradient_checkpointing true --attn_implementation flash_attention_2 --max_pixels 2359296 --save_total_limit 8
--num_train_epochs 1 --run_name x
"""


def loaded(made: seed_settings.Command) -> RunConfig:
    return config.load(ROOT / made.config, [w for w in made.words[3:] if "=" in w])


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A parquet file of 100 rows."""
    pq.write_table(pa.table({"prompt": list(range(100))}), tmp_path / "train-00000-of-00001.parquet")
    return str(tmp_path / "train-00000-of-00001.parquet")


def targets() -> list[str]:
    return [rule.key for table in (MMSEARCH_R1, OPEN_R1) for rule in table.values() if isinstance(rule, To)]


@pytest.mark.parametrize("key", sorted({*targets()}))
def test_what_a_setting_becomes_exists(key: str) -> None:
    at: Any = config.parse({"model": {"path": "m"}})
    for name in key.split("."):
        if isinstance(at, dict):
            return  # SGLang's own arguments are checked by SGLang
        assert name in type(at).model_fields, key
        at = getattr(at, name)


def test_the_script_of_mmsearch_r1_as_it_is(rows: str) -> None:
    words = [w.replace("'", "") for w in ITS_SCRIPT.split()]
    made = seed_settings.command("mmsearch-r1", [*words, f"data.train_files={rows}", f"data.val_files={rows}"])
    cfg = loaded(made)
    assert made.words[:3] == ["mmsr1", "train", "configs/qwen2.5-vl-7b-fvqa.yaml"]
    assert (cfg.train.steps, cfg.data.prompts_per_step, cfg.data.group_size) == (90, 32, 4)  # 30 epochs of 3 whole batches
    assert (cfg.protocol.max_prompt_tokens, cfg.protocol.max_turn_tokens, cfg.protocol.max_response_tokens) == (
        4096,
        2048,
        8192,
    )
    assert (cfg.optimizer.schedule, cfg.optimizer.decay_at, cfg.optimizer.lr) == ("sigmoid", 45, 2e-6)
    assert cfg.optimizer.min_lr == pytest.approx(1e-7)
    assert (cfg.placement.engines.count, cfg.placement.colocated, cfg.train.ranks) == (8, True, 8)
    assert cfg.algorithm.updates_per_step == 1 and cfg.rollout.tool_concurrency == 8
    assert (cfg.name, cfg.output, cfg.logging.wandb, cfg.logging.wandb_project) == ("e", "runs/e", True, "p")
    said = {n.partition(":")[0] for n in made.notes}
    assert f"{A}actor.fsdp_config.param_offload" in said and f"{A}ref.fsdp_config.param_offload" in said


def test_the_flags_of_open_r1_as_they_are(rows: str) -> None:
    cfg = loaded(seed_settings.command("open-r1", [*ITS_FLAGS.split(), "--dataset_name", str(Path(rows).parent)]))
    assert cfg.train.steps == 12 and cfg.data.prompts_per_step == 8 and cfg.data.train == [rows]
    assert cfg.reward.model_dump()["name"] == "math" and cfg.model.max_pixels == 2359296
    assert (cfg.model.path, cfg.output, cfg.name) == ("Qwen/Qwen2-VL-2B-Instruct", "checkpoints/x", "x")
    assert cfg.logging.wandb and cfg.megatron.recompute == "full" and cfg.algorithm.kl_coef == 0.04


# ----------------------------------------------------------------------------------------------------------------- properties
NUMBERS: dict[str, Any] = {
    "data.train_batch_size": st.sampled_from([8, 16, 64]),
    "data.max_prompt_length": st.integers(64, 4096),
    "data.max_response_length": st.integers(16, 2048),
    "data.shuffle": st.booleans(),
    f"{A}actor.optim.lr": st.floats(1e-8, 1e-3),
    f"{A}actor.optim.weight_decay": st.floats(0, 0.5),
    f"{A}actor.grad_clip": st.floats(0, 10),
    f"{A}actor.clip_ratio_low": st.floats(0, 0.5),
    f"{A}actor.clip_ratio_high": st.floats(0, 0.5),
    f"{A}actor.entropy_coeff": st.floats(0, 0.1),
    f"{A}rollout.n": st.integers(2, 32),
    f"{A}rollout.temperature": st.floats(0.1, 2),
    f"{A}rollout.max_gen_round": st.integers(2, 9),
    f"{A}rollout.response_length_total": st.integers(2048, 32768),
    f"{A}rollout.search.topk": st.integers(1, 9),
    f"{A}rollout.search.image_search_limit": st.integers(0, 3),
    f"{A}rollout.search.text_search_limit": st.integers(0, 3),
    f"{A}rollout.search.parallel_tool_call_threads": st.integers(1, 256),
    "trainer.search_penalty": st.floats(0, 1),
    "trainer.format_penalty": st.floats(0, 1),
    "trainer.reward_mode": st.sampled_from(["EM", "SubEM"]),
}


@settings(max_examples=examples(20))
@given(st.fixed_dictionaries({}, optional=NUMBERS))
def test_every_value_arrives(values: dict[str, Any]) -> None:
    values.setdefault(f"{A}actor.ppo_mini_batch_size", values.get("data.train_batch_size", 32))
    values.setdefault(f"{A}actor.optim.lr_sigmoid_decay_ratio", 0.5)  # so that min_lr is below any lr
    cfg = loaded(seed_settings.command("mmsearch-r1", [*STEPS, *(f"{k}={v}" for k, v in values.items())]))
    for key, value in values.items():
        if isinstance(rule := MMSEARCH_R1[key], To):
            found: Any = cfg
            for name in rule.key.split("."):
                found = getattr(found, name)
            assert found == rule.make(value), key


KNOWN = {*MMSEARCH_R1, *OPEN_R1}


@settings(max_examples=examples(50))
@given(st.from_regex(r"[a-z_]{1,12}(\.[a-z_]{1,12}){0,2}", fullmatch=True))
def test_an_unknown_name_is_named(key: str) -> None:
    if key in KNOWN or key.startswith(tuple(MMSEARCH_R1_BELOW)):
        return
    with pytest.raises(Refused) as e:
        seed_settings.command("mmsearch-r1", [*STEPS, f"{key}=1"])
    assert f"  {key}: unknown" in str(e.value)
    if "." not in key:
        with pytest.raises(Refused) as e:
            seed_settings.command("open-r1", ["--max_steps", "3", f"--{key}", "1"])
        assert f"  {key}: unknown" in str(e.value)


@pytest.mark.parametrize("key", [k for k, r in MMSEARCH_R1.items() if isinstance(r, Only)])
def test_a_value_without_counterpart_is_refused(key: str) -> None:
    with pytest.raises(Refused, match="is possible"):
        seed_settings.command("mmsearch-r1", [*STEPS, f"{key}=something_else"])


def test_what_is_made_of_several_settings_is_read() -> None:
    """A rule `Read` promises that some code uses the setting: by its name, or by the end of it."""
    source = (ROOT / "scripts" / "seed_settings.py").read_text()
    for table in (MMSEARCH_R1, OPEN_R1):
        for key in (k for k, r in table.items() if isinstance(r, Read)):
            short = key.removeprefix(A)
            stem, _, end = short.partition("user_prompt_")
            assert (
                f'"{short}"' in source
                or (end and f'"{end}"' in source and stem)
                or short.endswith("optim.total_training_steps")
            ), key


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.train_batch_size=48"], "ppo_mini_batch_size=32 does not divide data.train_batch_size=48"),
        ([f"{A}rollout.tensor_model_parallel_size=3"], "does not divide trainer.n_gpus_per_node=8"),
        ([f"{A}actor.kl_loss_type=abs"], "kl_loss_type=abs: one of kl, mse, low_var_kl"),
        (["trainer.logger=['swanlab']"], "swanlab"),
        (["data.user_prompt_round_1=a.pkl"], "give all three, or none"),
        (["algorithm.adv_estimator=gae", "nonsense=1"], "adv_estimator=gae: only grpo"),
        (["--flag"], "write it as key=value"),
    ],
)
def test_mmsearch_r1_refusals(words: list[str], says: str) -> None:
    with pytest.raises(Refused) as e:
        seed_settings.command("mmsearch-r1", [*STEPS, *words])
    assert says in str(e.value)


def test_epochs_need_the_rows(rows: str) -> None:
    with pytest.raises(Refused, match="30 epochs cannot be counted"):
        seed_settings.command("mmsearch-r1", ["data.train_files=gone.parquet"])
    made = seed_settings.command(
        "mmsearch-r1", [f"data.train_files={rows}", "trainer.total_epochs=2", "data.train_batch_size=32"]
    )
    assert loaded(made).train.steps == 6


def test_kl_evaluation_and_prompts() -> None:
    off = seed_settings.command("mmsearch-r1", [*STEPS, f"{A}actor.use_kl_loss=False", f"{A}actor.kl_loss_coef=0.1"])
    assert loaded(off).algorithm.kl_coef == 0
    only = seed_settings.command("mmsearch-r1", ["trainer.val_only=True", "trainer.val_only_save_dir=out", "data.val_files=v"])
    assert only.words[1] == "eval" and loaded(only).output == "out"
    pickles = [f"data.user_prompt_{n}={n}.pkl" for n in ("round_1", "after_image_search", "after_text_search")]
    made = seed_settings.command("mmsearch-r1", [*STEPS, *pickles, "trainer.experiment_name=e"])
    before = "mmsr1 prompts import round_1.pkl after_image_search.pkl after_text_search.pkl --out runs/e/prompts.yaml"
    assert [shlex.join(w) for w in made.before] == [before]
    assert made.settings["protocol.prompts"] == "runs/e/prompts.yaml"


def test_warm_up_of_open_r1(rows: str) -> None:
    for words, steps in ((["--warmup_steps", "7"], 7), (["--warmup_ratio", "0.05"], 5), ([], 0)):
        made = seed_settings.command("open-r1", ["--dataset_name", rows, "--max_steps", "99", *words])
        assert loaded(made).optimizer.warmup_steps == steps  # a share of the steps is rounded up


def test_rewards_of_open_r1(rows: str) -> None:
    for words, penalty in ((["accuracy"], 0.0), (["format", "accuracy"], 0.5), (["format"], 1.0)):
        made = seed_settings.command("open-r1", ["--dataset_name", rows, "--reward_funcs", *words])
        assert yaml.safe_load(config.dump(loaded(made)))["reward"]["format_penalty"] == penalty
    with pytest.raises(Refused):
        seed_settings.command("open-r1", ["--dataset_name", rows, "--reward_funcs", "length"])
    with pytest.raises(Refused, match="hf download --repo-type dataset lmms-lab/x"):
        seed_settings.command("open-r1", ["--dataset_name", "lmms-lab/x"])


@pytest.mark.parametrize(
    ("script", "words", "code", "says"),
    [
        ("run_mmsearch_r1_grpo.sh", [*STEPS, "--dry-run", "--", "seed=7"], 0, "train.steps=10 seed=7\n"),
        (
            "run_mmsearch_r1_grpo.sh",
            [*STEPS, "trainer.nodes=2", "--dry-run"],
            2,
            "trainer.nodes: unknown; did you mean trainer.nnodes?",
        ),
        ("run_open_r1_grpo.sh", ["--max_steps", "3", "--use_vllm", "--max_pixel", "5"], 2, "did you mean max_pixels?"),
    ],
)
def test_the_commands(script: str, words: list[str], code: int, says: str, tmp_path: Path) -> None:
    """In a checkout whose environment is this one."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in (script, "seed_settings.py", "seed_tables.py"):
        shutil.copy(ROOT / "scripts" / name, scripts / name)
    (scripts / "env.sh").write_text(f"#!/bin/sh\necho {Path(sys.executable).parent.parent}\n")
    (scripts / "env.sh").chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "TRAIN_DATA_PATH": "a b.parquet"}
    done = subprocess.run([scripts / script, *words], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code and says in (done.stderr if code else done.stdout), done.stderr
    if not code:
        assert done.stdout.startswith("mmsr1 train configs/") and "'data.train=[a b.parquet]'" in done.stdout
