"""Settings of MMSearch-R1 (veRL's hydra overrides) and of open-r1-multimodal (TRL's flags) as settings of ours: two tables.

    python scripts/seed_settings.py mmsearch-r1 trainer.nnodes=2 data.train_files=a.parquet --dry-run -- slurm.partition=gpu

prints, or without --dry-run becomes, the command `mmsr1 train CONFIG key=value...`. What stands behind `--` is ours already.
Exit code 2 names every setting that is unknown, or whose value has no counterpart.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from seed_tables import (
    MMSEARCH_R1,
    MMSEARCH_R1_BELOW,
    MMSEARCH_R1_SCRIPT,
    OPEN_R1,
    OPEN_R1_SCRIPT,
    A,
    Nothing,
    Only,
    Refused,
    Rule,
    To,
    choice,
    interval,
    listed,
)

Values = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------------- reading
def hydra(words: list[str]) -> Values:
    """`key=value`, `+key=value`; a value is YAML."""
    found: Values = {}
    for word in words:
        key, eq, text = word.lstrip("+").partition("=")
        if not eq or key.startswith(("-", "~")):
            raise Refused(f"{word}: write it as key=value")
        found[key] = _value(text)
    return found


def flags(words: list[str]) -> Values:
    """`--key value...`, `--key=value`, and `--key` alone, which is true."""
    found: Values = {}
    at = 0
    while at < len(words):
        key, eq, text = words[at].partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise Refused(f"{words[at]}: write it as --key value")
        at += 1
        values = [text] if eq else []
        while not eq and at < len(words) and not words[at].startswith("--"):
            values.append(words[at])
            at += 1
        read = [_value(v) for v in values]
        found[key[2:].replace("-", "_")] = True if not read else read[0] if len(read) == 1 else read
    return found


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)  # YAML 1.1 wants a point
    return value


def translate(given: Values, table: Mapping[str, Rule], below: Mapping[str, Rule]) -> tuple[Values, list[str], list[str]]:
    """(settings of ours, notes, what is wrong) by the table alone."""
    ours: Values = {}
    notes: list[str] = []
    wrong: list[str] = []
    for key, value in given.items():
        rule = table.get(key) or next((r for start, r in below.items() if key.startswith(start)), None)
        match rule:
            case None:
                near = difflib.get_close_matches(key, table, n=1)
                wrong.append(f"{key}: unknown" + (f"; did you mean {near[0]}?" if near else ""))
            case To(name, make):
                try:
                    ours[name] = make(value)
                except Refused as e:
                    wrong.append(f"{key}={value}: {e}")
            case Only(values, why) if value not in values:
                wrong.append(f"{key}={value}: only {' or '.join(map(str, values))} is possible: {why}")
            case Nothing(why):
                notes.append(f"{key}: {why}")
            case _:
                pass
    return ours, notes, wrong


# ------------------------------------------------------------------------------------------------- settings made of several
def _mmsearch_r1(v: Values, ours: Values) -> str:
    """Adds what is made of several settings; returns the verb."""
    get = {k.removeprefix(A): x for k, x in v.items()}.get
    nodes, gpus = int(v["trainer.nnodes"]), int(v["trainer.n_gpus_per_node"])
    each = int(get("rollout.tensor_model_parallel_size") or 1)
    ours |= _ranks(nodes, gpus) | {
        "placement.engines.count": nodes * (gpus // each),
        "placement.engines.gpus_each": each,
        "placement.engines.nodes": None,
        "placement.colocated": True,
        "engine.sglang.tp_size": each,
    }
    if gpus % each:
        raise Refused(f"{A}rollout.tensor_model_parallel_size={each} does not divide trainer.n_gpus_per_node={gpus}")
    batch, mini = int(v["data.train_batch_size"]), int(get("actor.ppo_mini_batch_size") or v["data.train_batch_size"])
    if batch % mini:
        raise Refused(f"{A}actor.ppo_mini_batch_size={mini} does not divide data.train_batch_size={batch}")
    ours["algorithm.updates_per_step"] = batch // mini
    if int(get("actor.ppo_epochs") or 1) != 1:
        raise Refused(f"{A}actor.ppo_epochs: rollouts are trained on once")
    if (clip := get("actor.clip_ratio")) is not None:
        ours |= {"algorithm.clip_low": clip, "algorithm.clip_high": clip} | {
            k: x for k, x in ours.items() if k.startswith("algorithm.clip_")
        }
    if get("actor.use_kl_loss") is False:
        ours["algorithm.kl_coef"] = 0
    elif (coef := get("actor.kl_loss_coef")) is not None:
        ours["algorithm.kl_coef"] = coef
    verb = "eval" if v.get("trainer.val_only") else "train"
    total = v.get("trainer.total_training_steps")
    if verb == "train":
        ours["train.steps"] = int(total) if total else _steps(ours.get("data.train", []), v["trainer.total_epochs"], batch)
        ours["train.save_interval"] = interval(v["trainer.save_freq"]) or ours["train.steps"]
        _rate(get, ours)
    loggers = {str(x) for x in listed(v.get("trainer.logger", []))}
    if unknown := loggers - {"console", "wandb", "tensorboard"}:
        raise Refused(f"trainer.logger: {', '.join(sorted(unknown))}: console, wandb and tensorboard are there")
    if loggers:
        ours["logging.wandb"] = "wandb" in loggers
    name = v.get("trainer.experiment_name")
    if name is not None:
        ours |= {"name": str(name), "output": f"runs/{name}"}
    out = (verb == "eval" and v.get("trainer.val_only_save_dir")) or v.get("trainer.default_local_dir")
    if out:
        ours["output"] = out
    prompts = [v.get(f"data.user_prompt_{n}") for n in ("round_1", "after_image_search", "after_text_search")]
    if any(prompts):
        if not all(prompts):
            raise Refused("data.user_prompt_*: give all three, or none")
        ours["protocol.prompts"] = f"{ours.get('output', 'runs')}/prompts.yaml"
    return verb


def _rate(get: Callable[[str], Any], ours: Values) -> None:
    """The learning rate's course."""
    lr, steps = ours.get("optimizer.lr"), ours["train.steps"]
    style = get("actor.optim.warmup_style")
    if get("actor.optim.lr_sigmoid_decay_warmup"):
        ours |= {"optimizer.schedule": "sigmoid", "optimizer.warmup_steps": 0}
        ours["optimizer.decay_at"] = int(get("actor.optim.lr_sigmoid_decay_warmup_steps") or 60)
        if lr is not None:
            ours["optimizer.min_lr"] = float(lr) * (1 - float(get("actor.optim.lr_sigmoid_decay_ratio") or 0))
    elif style is not None or get("actor.optim.lr_sigmoid_decay_warmup") is False:
        ours |= {"optimizer.schedule": choice({"constant": "constant", "cosine": "cosine"})(style or "constant")}
        ours["optimizer.warmup_steps"] = round(steps * float(get("actor.optim.lr_warmup_steps_ratio") or 0))
        if lr is not None and style == "cosine":
            ours["optimizer.min_lr"] = float(lr) * float(get("actor.optim.min_lr_ratio") or 0)


def _open_r1(v: Values, ours: Values) -> str:
    nodes, gpus = int(v["nnodes"]), int(v["nproc_per_node"])
    ours |= _ranks(nodes, gpus) | {
        "placement.engines.count": nodes * gpus,
        "placement.engines.gpus_each": 1,
        "placement.engines.nodes": None,
        "placement.colocated": True,
    }
    ours.setdefault("optimizer.warmup_steps", 0)
    ours |= {"algorithm.average": "sequence", "optimizer.betas": [0.9, 0.999]}
    batch = int(v["per_device_train_batch_size"]) * int(v["gradient_accumulation_steps"]) * nodes * gpus
    ours["data.prompts_per_step"] = batch
    train = _parquet(str(v.get("dataset_name", "")), str(v["dataset_train_split"]))
    evaluates = v.get("eval_strategy", "no") != "no"
    ours |= {"data.train": train, "data.heldout": []}
    if evaluates:
        ours["data.heldout"] = _parquet(str(v["dataset_name"]), str(v["dataset_test_split"]))
        ours["train.eval_interval"] = int(v.get("eval_steps", v["save_steps"]))
    most = int(v.get("max_steps", -1))
    ours["train.steps"] = most if most > 0 else _steps(train, v["num_train_epochs"], batch)
    ours["protocol.max_turn_tokens"] = ours["protocol.max_response_tokens"] = v["max_completion_length"]
    ours["megatron.tokens_per_microbatch"] = max(16384, int(v["max_prompt_length"]) + int(v["max_completion_length"]))
    rewards = {"accuracy,format": 0.5, "accuracy": 0.0, "format": 1.0}  # a sum of two, up to a factor that advantages lose
    chosen = ",".join(sorted(str(r) for r in listed(v["reward_funcs"])))
    ours["reward.format_penalty"] = choice(rewards)(chosen)
    if "warmup_ratio" in v and not v.get("warmup_steps"):
        ours["optimizer.warmup_steps"] = -int(-ours["train.steps"] * float(v["warmup_ratio"]) // 1)
    if "epsilon" in v:
        ours |= {"algorithm.clip_low": v["epsilon"], "algorithm.clip_high": v["epsilon"]}
    if "adam_beta1" in v or "adam_beta2" in v:
        ours["optimizer.betas"] = [v.get("adam_beta1", 0.9), v.get("adam_beta2", 0.999)]
    loggers = {str(x) for x in listed(v.get("report_to", "none"))}
    if unknown := loggers - {"wandb", "tensorboard", "none", "all"}:
        raise Refused(f"--report_to {', '.join(sorted(unknown))}: wandb, tensorboard and none are there")
    ours["logging.wandb"] = bool(loggers & {"wandb", "all"})
    return "train"


def _ranks(nodes: int, gpus: int) -> Values:
    return {
        "train.ranks": nodes * gpus,
        "placement.trainer.nodes": nodes,
        "placement.trainer.gpus_per_node": gpus,
        "megatron.tensor_parallel": (parallel := next(t for t in (4, 2, 1) if gpus % t == 0)),
        "megatron.sequence_parallel": parallel > 1,
    }


def _steps(files: list[str], epochs: Any, batch: int) -> int:
    """Whole batches of so many passes over the rows."""
    import pyarrow.parquet as pq

    missing = [f for f in files if not Path(f).is_file()]
    if missing or not files:
        what = f"{missing[0]} is not here" if missing else "no file to train on is named"
        raise Refused(f"{what}, so {epochs} epochs cannot be counted in steps: name it, or give the number of steps")
    rows = sum(pq.ParquetFile(f).metadata.num_rows for f in files)
    return max(1, int(float(epochs) * (rows // batch)))


def _parquet(name: str, split: str) -> list[str]:
    """A parquet file, or those of a split in a directory as the hub has it."""
    if Path(name).is_file():
        return [name]
    found = sorted(str(p) for p in Path(name).rglob(f"{split}*.parquet")) if name and Path(name).is_dir() else []
    if not found:
        fetch = f"hf download --repo-type dataset {name or 'NAME'} --local-dir data/{Path(name).name or 'NAME'}"
        raise Refused(f"--dataset_name {name}: no {split}*.parquet there. If it is a name on the hub, fetch it first: {fetch}")
    return found


# -------------------------------------------------------------------------------------------------------------------- command
@dataclass(slots=True)
class Command:
    """`mmsr1 VERB CONFIG key=value...`; `before` has to run first."""

    verb: str
    config: str
    settings: Values
    extra: list[str]
    notes: list[str]
    before: list[list[str]] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        settings = [f"{k}={_yaml(v)}" for k, v in sorted(self.settings.items())]
        return ["mmsr1", self.verb, self.config, *settings, *self.extra]


def command(seed: str, words: list[str]) -> Command:
    """Raises Refused with a line for everything that is wrong."""
    mmsearch = seed == "mmsearch-r1"
    mine, extra = words, []
    if "--" in words:
        mine, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    read = hydra if mmsearch else flags
    table, below = (MMSEARCH_R1, MMSEARCH_R1_BELOW) if mmsearch else (OPEN_R1, {})
    given = read(mine)
    values = read(MMSEARCH_R1_SCRIPT if mmsearch else OPEN_R1_SCRIPT) | given
    if not mmsearch and "torch_dtype" in given and "bf16" not in given:
        del values["bf16"]
    ours, notes, wrong = translate(values, table, below)
    if wrong:
        raise Refused("\n  ".join(["these settings cannot be taken over:", *wrong]))
    verb = (_mmsearch_r1 if mmsearch else _open_r1)(values, ours)
    config = "configs/qwen2.5-vl-7b-fvqa.yaml" if mmsearch else "configs/qwen2-vl-2b-maths.yaml"
    made = Command(verb, config, ours, extra, [n for n in notes if n.partition(":")[0] in given])
    if "protocol.prompts" in ours:
        pickles = [str(values[f"data.user_prompt_{n}"]) for n in ("round_1", "after_image_search", "after_text_search")]
        made.before.append(["mmsr1", "prompts", "import", *pickles, "--out", str(ours["protocol.prompts"])])
    return made


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def main(argv: list[str]) -> int:
    seed, *words = argv
    ours_at = words.index("--") if "--" in words else len(words)
    dry = "--dry-run" in words[:ours_at]
    try:
        made = command(seed, [w for i, w in enumerate(words) if w != "--dry-run" or i > ours_at])
    except Refused as e:
        print(f"run_{seed.replace('-', '_')}_grpo.sh: {e}", file=sys.stderr)
        return 2
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    for words in (*made.before, made.words):
        print(shlex.join(words), flush=True)
    if dry:
        return 0
    for words in made.before:
        Path(words[-1]).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "megatron_mmsr1.cli", *words[1:]], check=True)
    os.execv(sys.executable, [sys.executable, "-m", "megatron_mmsr1.cli", *made.words[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
