"""MMSearch-R1's settings (veRL's hydra overrides) and open-r1-multimodal's (TRL's flags), each with what it is here.

`scripts/seed_settings.py` reads a command by these tables. A setting whose rule is `Read` goes into ours together with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """A value that has no counterpart here."""


@dataclass(frozen=True, slots=True)
class To:
    """It is this key of ours, its value made by `make`."""

    key: str
    make: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class Read:
    """It goes into a setting of ours together with others."""


@dataclass(frozen=True, slots=True)
class Only:
    """Only these values; with them it is what happens here anyway."""

    values: tuple[Any, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """It changes nothing that is learnt, and has no counterpart; said once."""

    why: str


Rule = To | Read | Only | Nothing
MEMORY = Nothing("how memory is shared out is Megatron's and SGLang's own business (megatron:, engine.sglang:)")
MICRO = Nothing("micro-batches are packed to megatron.tokens_per_microbatch")
CRITIC = Nothing("GRPO has no critic")
SHOWN = Nothing("every rollout is kept as a file (logging.dump_rollouts)")


def choice(known: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def make(value: Any) -> Any:
        if value not in known:
            raise Refused(f"one of {', '.join(map(str, known))} is wanted")
        return known[value]

    return make


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def interval(value: Any) -> int:
    return max(0, int(value))


A = "actor_rollout_ref."
MMSEARCH_R1: dict[str, Rule] = {
    "data.train_files": To("data.train", listed),
    "data.val_files": To("data.heldout", listed),
    "data.train_batch_size": To("data.prompts_per_step"),
    "data.max_prompt_length": To("protocol.max_prompt_tokens"),
    "data.max_response_length": To("protocol.max_turn_tokens"),
    "data.shuffle": To("data.shuffle"),
    "data.image_key": Only(("images",), "the column is called images"),
    "data.prompt_key": Only(("prompt",), "the column is called prompt"),
    **{f"data.user_prompt_{n}": Read() for n in ("round_1", "after_image_search", "after_text_search")},
    **{
        f"data.{n}": Nothing("data is read otherwise")
        for n in ("num_workers", "val_batch_size", "return_raw_chat", "tokenizer")
    },
    "data.return_raw_input_ids": Nothing("data is read otherwise"),
    f"{A}hybrid_engine": Only((True,), "engines share the trainer's GPUs"),
    f"{A}model.path": To("model.path"),
    f"{A}model.enable_gradient_checkpointing": To("megatron.recompute", lambda on: "full" if on else "none"),
    f"{A}model.use_remove_padding": Nothing("sequences are always packed"),
    f"{A}actor.strategy": Only(("fsdp",), "Megatron-Core takes its place"),
    f"{A}actor.optim.lr": To("optimizer.lr"),
    f"{A}actor.optim.weight_decay": To("optimizer.weight_decay"),
    f"{A}actor.optim.betas": To("optimizer.betas"),
    **{
        f"{A}actor.optim.{n}": Read() for n in ("lr_warmup_steps_ratio", "min_lr_ratio", "warmup_style", "total_training_steps")
    },
    **{f"{A}actor.optim.lr_sigmoid_decay_{n}": Read() for n in ("warmup", "ratio", "warmup_steps")},
    f"{A}actor.grad_clip": To("optimizer.clip_grad"),
    f"{A}actor.clip_ratio": Read(),
    f"{A}actor.clip_ratio_low": To("algorithm.clip_low"),
    f"{A}actor.clip_ratio_high": To("algorithm.clip_high"),
    f"{A}actor.entropy_coeff": To("algorithm.entropy_coef"),
    f"{A}actor.use_kl_loss": Read(),
    f"{A}actor.kl_loss_coef": Read(),
    f"{A}actor.kl_loss_type": To("algorithm.kl", choice({"kl": "k1", "mse": "k2", "low_var_kl": "k3"})),
    f"{A}actor.ppo_mini_batch_size": Read(),
    f"{A}actor.ppo_epochs": Read(),
    f"{A}actor.ppo_max_token_len_per_gpu": To("megatron.tokens_per_microbatch"),
    f"{A}actor.use_multi_turn_response_mask": Only((True,), "what the model did not say is never trained on"),
    f"{A}actor.traj_level_loss": Only((False,), "the ratio is per token"),
    f"{A}actor.shuffle": Only((False,), "mini-batches keep their order"),
    f"{A}actor.use_dynamic_bsz": MICRO,
    **{f"{A}actor.{n}": MICRO for n in ("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu")},
    f"{A}actor.ulysses_sequence_parallel_size": To("megatron.context_parallel"),
    f"{A}ref.ulysses_sequence_parallel_size": Nothing("the reference lies as the policy does"),
    **{f"{A}{w}.entropy_from_logits_with_chunking": MEMORY for w in ("actor", "ref")},
    **{
        f"{A}{w}.log_prob_{n}": MICRO
        for w in ("rollout", "ref")
        for n in ("micro_batch_size", "micro_batch_size_per_gpu", "use_dynamic_bsz", "max_token_len_per_gpu")
    },
    f"{A}rollout.name": Only(("vllm_multiturn_mmsearch",), "SGLang does the same"),
    f"{A}rollout.mode": Nothing("every trajectory runs on its own"),
    f"{A}rollout.n": To("data.group_size"),
    f"{A}rollout.temperature": To("rollout.temperature"),
    f"{A}rollout.top_p": Only((1, 1.0), "the policy itself is sampled"),
    f"{A}rollout.top_k": Only((-1,), "the policy itself is sampled"),
    f"{A}rollout.do_sample": Only((True,), "the policy itself is sampled"),
    f"{A}rollout.ignore_eos": Only((False,), "a turn ends where the model ends it"),
    f"{A}rollout.dtype": To("model.dtype", choice({"bfloat16": "bfloat16", "float32": "float32"})),
    f"{A}rollout.tensor_model_parallel_size": Read(),
    f"{A}rollout.gpu_memory_utilization": To("engine.sglang.mem_fraction_static"),
    f"{A}rollout.enforce_eager": To("engine.sglang.disable_cuda_graph"),
    f"{A}rollout.max_num_seqs": To("engine.sglang.max_running_requests"),
    f"{A}rollout.max_model_len": To("engine.sglang.context_length"),
    **{
        f"{A}rollout.{n}": MEMORY
        for n in ("enable_chunked_prefill", "free_cache_engine", "load_format", "max_num_batched_tokens")
    },
    **{
        f"{A}rollout.{n}": Nothing("SGLang's own")
        for n in ("disable_log_stats", "limit_images", "prompt_length", "response_length")
    },
    f"{A}rollout.max_gen_round": To("protocol.max_rounds"),
    f"{A}rollout.response_length_total": To("protocol.max_response_tokens"),
    f"{A}rollout.search.topk": To("protocol.top_k"),
    f"{A}rollout.search.image_search_limit": To("protocol.image_searches"),
    f"{A}rollout.search.text_search_limit": To("protocol.text_searches"),
    f"{A}rollout.search.parallel_tool_call": Nothing("every trajectory runs on its own"),
    f"{A}rollout.search.parallel_tool_call_threads": To("rollout.tool_concurrency"),
    "algorithm.adv_estimator": Only(("grpo",), "other estimators: algorithm.advantage"),
    "algorithm.gamma": Only((1, 1.0), "a group's advantage has no discount"),
    "algorithm.lam": Only((1, 1.0), "a group's advantage has no discount"),
    "algorithm.kl_penalty": Nothing("the KL is in the loss"),
    "algorithm.kl_ctrl.type": Nothing("the KL is in the loss"),
    "algorithm.kl_ctrl.kl_coef": Nothing("the KL is in the loss"),
    "algorithm.filter_groups.enable": Nothing(
        "a group without spread is always left out of the update, none is sampled instead"
    ),
    "reward_model.enable": Only((False,), "another reward: reward.name"),
    "reward_model.reward_manager": Nothing("the reward is reward.name"),
    "trainer.critic_warmup": CRITIC,
    "trainer.logger": Read(),
    "trainer.project_name": To("logging.wandb_project"),
    "trainer.experiment_name": Read(),
    "trainer.default_local_dir": Read(),
    "trainer.n_gpus_per_node": Read(),
    "trainer.nnodes": Read(),
    "trainer.save_freq": Read(),
    "trainer.test_freq": To("train.eval_interval", interval),
    "trainer.total_epochs": Read(),
    "trainer.total_training_steps": Read(),
    "trainer.search_penalty": To("reward.search_penalty"),
    "trainer.format_penalty": To("reward.format_penalty"),
    "trainer.reward_mode": To("reward.reward_mode"),
    "trainer.val_before_train": Only((True,), "data.heldout is always evaluated before; leave it empty"),
    "trainer.val_only": Read(),
    "trainer.val_only_save_dir": Read(),
    "trainer.resume_mode": Only(("auto",), "the same command always resumes"),
    "trainer.resume_from_path": Only((False,), "the same command always resumes"),
    "trainer.default_hdfs_dir": Only((None,), "checkpoints go to output"),
    "trainer.remove_previous_ckpt_in_save": To("train.keep_checkpoints", lambda on: 1 if on else 2),
    "trainer.del_local_ckpt_after_load": Only((False,), "a checkpoint stays until newer ones replace it"),
    **{
        f"trainer.{n}": SHOWN
        for n in ("val_generations_to_log_to_wandb", "train_generations_to_log_to_wandb", "rollout_log_dir")
    },
}
MMSEARCH_R1_BELOW: dict[str, Rule] = {
    "critic.": CRITIC,
    f"{A}actor.fsdp_config.": MEMORY,
    f"{A}ref.fsdp_config.": MEMORY,
    "reward_model.": Nothing("there is no reward model"),
}
# What its script sets, in numbers; what it leaves out is in configs/qwen2.5-vl-7b-fvqa.yaml.
MMSEARCH_R1_SCRIPT = [
    *("data.train_batch_size=32", f"{A}actor.ppo_mini_batch_size=32", f"{A}rollout.n=4"),
    *(f"{A}actor.optim.lr=2e-6", f"{A}actor.optim.lr_sigmoid_decay_warmup=True"),
    *(f"{A}actor.optim.lr_sigmoid_decay_ratio=0.95", f"{A}actor.optim.lr_sigmoid_decay_warmup_steps=45"),
    *(f"{A}rollout.tensor_model_parallel_size=1", f"{A}rollout.gpu_memory_utilization=0.6"),
    *("trainer.n_gpus_per_node=8", "trainer.nnodes=1", "trainer.save_freq=100", "trainer.test_freq=100"),
    *("trainer.total_epochs=30",),
]

HUB = Nothing("nothing is sent to the hub")
OPEN_R1: dict[str, Rule] = {
    "model_name_or_path": To("model.path"),
    "output_dir": To("output"),
    "run_name": To("name"),
    "dataset_name": Read(),
    "dataset_train_split": Read(),
    "dataset_test_split": Read(),
    "dataset_config": Only((None,), "name the parquet files by --dataset_name"),
    "max_prompt_length": To("protocol.max_prompt_tokens"),
    "max_completion_length": Read(),
    "num_generations": To("data.group_size"),
    "temperature": To("rollout.temperature"),
    "beta": To("algorithm.kl_coef"),
    "num_iterations": To("algorithm.updates_per_step"),
    "epsilon": Read(),
    "reward_funcs": Read(),
    "learning_rate": To("optimizer.lr"),
    "lr_scheduler_type": To(
        "optimizer.schedule",
        choice({"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}),
    ),
    "warmup_steps": To("optimizer.warmup_steps"),
    "warmup_ratio": Read(),
    "weight_decay": To("optimizer.weight_decay"),
    "adam_beta1": Read(),
    "adam_beta2": Read(),
    "adam_epsilon": To("optimizer.eps"),
    "max_grad_norm": To("optimizer.clip_grad"),
    "num_train_epochs": Read(),
    "max_steps": Read(),
    "per_device_train_batch_size": Read(),
    "gradient_accumulation_steps": Read(),
    "nproc_per_node": Read(),
    "nnodes": Read(),
    **{n: Nothing("ranks are started by mmsr1") for n in ("node_rank", "master_addr", "master_port", "ddp_timeout")},
    "seed": To("seed"),
    "max_pixels": To("model.max_pixels"),
    "min_pixels": To("model.min_pixels"),
    "bf16": To("model.dtype", lambda on: "bfloat16" if on else "float32"),
    "torch_dtype": To("model.dtype", choice({"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"})),
    "fp16": Only((False,), "bfloat16 or float32"),
    "gradient_checkpointing": To("megatron.recompute", lambda on: "full" if on else "none"),
    "deepspeed": Nothing("Megatron-Core shards the optimizer (megatron.distributed_optimizer)"),
    "attn_implementation": Nothing("Megatron-Core picks the attention; mmsr1 doctor says which"),
    "use_peft": Only((False,), "all weights are trained"),
    "use_vllm": Nothing("SGLang generates"),
    "save_steps": To("train.save_interval"),
    "save_strategy": Only(("steps",), "checkpoints are written by steps"),
    "save_total_limit": To("train.keep_checkpoints"),
    "save_only_model": Nothing("a checkpoint is always whole"),
    "eval_strategy": Read(),
    "eval_steps": Read(),
    "per_device_eval_batch_size": Nothing("an evaluation has no batches"),
    "logging_steps": Nothing("every step is logged"),
    "report_to": Read(),
    "log_completions": SHOWN,
    "push_to_hub": Only((False,), "nothing is sent to the hub"),
    **{n: HUB for n in ("hub_model_id", "hub_strategy")},
    **{
        n: Nothing("data is read otherwise")
        for n in ("dataloader_num_workers", "remove_unused_columns", "preprocessing_num_workers")
    },
}
# TRL's own defaults where they decide what is learnt, and the script's.
OPEN_R1_SCRIPT = [
    *("--max_prompt_length", "8192", "--max_completion_length", "256", "--num_generations", "8", "--temperature", "0.9"),
    *("--beta", "0.04", "--learning_rate", "1e-6", "--lr_scheduler_type", "linear", "--max_grad_norm", "1.0"),
    *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--num_train_epochs", "1", "--bf16"),
    *("--gradient_checkpointing", "true", "--max_pixels", "2359296", "--save_steps", "500", "--save_total_limit", "8"),
    *("--nproc_per_node", "8", "--nnodes", "1", "--reward_funcs", "accuracy", "format", "--dataset_train_split", "train"),
    *("--dataset_test_split", "test"),
]
