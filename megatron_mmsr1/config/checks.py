"""What must hold between the settings of a run: each rule is a sentence that names the keys and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_mmsr1.config import RunConfig


def problems(cfg: RunConfig) -> list[str]:
    """Every rule that is broken; `RunConfig` refuses to be made while there is one."""
    rules = (_pictures, _lora, _layout, _placement, _training, _shaping, _conversation, _micro_batches)
    return [said for rule in rules for said in rule(cfg)]


def _pictures(cfg: RunConfig) -> Iterator[str]:
    m = cfg.model
    if m.min_pixels > m.max_pixels:
        yield f"model.min_pixels={m.min_pixels} is above model.max_pixels={m.max_pixels}"


def _lora(cfg: RunConfig) -> Iterator[str]:
    lora, t = cfg.model.lora, cfg.megatron.tensor_parallel
    if lora is None:
        return
    if "language" in cfg.model.freeze:
        yield "model.lora trains adapters in the language model, which model.freeze keeps as it is: leave language out of it"
    if lora.rank % t:
        yield f"model.lora.rank={lora.rank} does not divide over megatron.tensor_parallel={t}: take a multiple of it"
    if len(set(lora.targets)) < len(lora.targets):
        yield f"model.lora.targets={lora.targets} names one twice: leave it out"


def _layout(cfg: RunConfig) -> Iterator[str]:
    m, ranks = cfg.megatron, cfg.train.ranks
    group = m.tensor_parallel * m.pipeline_parallel * m.context_parallel
    if ranks % group:
        yield f"train.ranks={ranks} is not a multiple of tensor x pipeline x context parallel = {group}"
    elif cfg.data.prompts_per_step % cfg.data_parallel:
        yield (
            f"data.prompts_per_step={cfg.data.prompts_per_step} does not divide over {cfg.data_parallel} data-parallel ranks"
        )
    experts = m.expert_tensor * m.expert_parallel * m.pipeline_parallel
    if (m.expert_parallel > 1 or m.expert_tensor != m.tensor_parallel) and ranks % experts:
        yield (
            f"train.ranks={ranks} is not a multiple of expert tensor ({m.expert_tensor}) x expert ({m.expert_parallel}) x "
            f"pipeline parallel ({m.pipeline_parallel}) = {experts}: lower megatron.expert_parallel"
        )
    if m.virtual_pipeline > 1 and m.pipeline_parallel == 1:
        yield f"megatron.virtual_pipeline={m.virtual_pipeline} needs megatron.pipeline_parallel > 1"
    if m.pipeline_split is not None and len(m.pipeline_split) != m.pipeline_parallel * m.virtual_pipeline:
        yield (
            f"megatron.pipeline_split has {len(m.pipeline_split)} numbers, but there are pipeline ({m.pipeline_parallel}) x "
            f"virtual pipeline ({m.virtual_pipeline}) = {m.pipeline_parallel * m.virtual_pipeline} chunks of layers"
        )
    if m.overlap_grad_reduce and not cfg.model.vision_frozen:
        yield (
            "megatron.overlap_grad_reduce=true with a vision tower or merger that is trained: a picture goes back through it "
            "once, with the last micro-batch that shows it, which need not be the last of all. Freeze both, or leave it out"
        )
    if m.offload.activations and m.recompute != "full":
        yield (
            f"megatron.offload.activations=true with megatron.recompute={m.recompute}: what waits on the host is what full "
            "recompute keeps; set megatron.recompute: full"
        )
    if m.sequence_parallel and m.tensor_parallel == 1:
        yield "megatron.sequence_parallel needs megatron.tensor_parallel > 1"


def _placement(cfg: RunConfig) -> Iterator[str]:
    p, ranks = cfg.placement, cfg.train.ranks
    if ranks % p.trainer.nodes:
        yield f"train.ranks={ranks} do not divide over placement.trainer.nodes={p.trainer.nodes}"
    elif p.trainer.gpus_per_node not in (None, 0, ranks // p.trainer.nodes):
        yield (
            f"placement.trainer.gpus_per_node={p.trainer.gpus_per_node}, but each of {p.trainer.nodes} nodes runs "
            f"{ranks // p.trainer.nodes} ranks, a GPU each: set train.ranks to nodes x gpus_per_node"
        )
    if p.colocated and p.engines.nodes:
        yield "placement.colocated=true puts engines on the trainer's GPUs: leave placement.engines.nodes out"
    if p.colocated and cfg.engine.urls:
        yield "placement.colocated=true starts engines beside the ranks, but engine.urls names some that run already"
    if p.summariser.model and (cfg.search.summarise.backend != "openai" or cfg.search.summarise.url or cfg.search.url):
        yield (
            "placement.summariser starts a model for the run's own search server: it needs search.summarise.backend=openai, "
            "and neither search.summarise.url nor search.url"
        )


def _training(cfg: RunConfig) -> Iterator[str]:
    if cfg.train.mode == "train-only" and not cfg.train.replay:
        yield "train.mode=train-only needs train.replay, the directory of a run's rollout dumps"
    t = cfg.train
    if (
        t.keep_best
        and t.keep_metric.lstrip("-").startswith("eval/")
        and (not t.eval_interval or t.eval_interval % t.save_interval)
    ):
        yield (
            f"train.keep_best by train.keep_metric={t.keep_metric} needs a checkpoint at each evaluation: set "
            "train.eval_interval to a multiple of train.save_interval, or name a metric of the step"
        )
    a = cfg.algorithm
    if (a.kl_target is not None or a.reference_interval) and not a.kl_coef:
        yield "algorithm.kl_target and algorithm.reference_interval are about a KL term: set algorithm.kl_coef above 0"
    if a.reference_interval and (a.distill_coef or cfg.model.reference not in (None, cfg.model.path)):
        yield (
            f"algorithm.reference_interval={a.reference_interval} would put the policy's weights in the place of a teacher or "
            "of model.reference: leave algorithm.distill_coef and model.reference out"
        )
    if not a.supervised and cfg.data.group_size < 2 and getattr(a.advantage, "name", "") != "reinforce_pp":
        yield "data.group_size=1 gives every rollout an advantage of zero; use at least 2"
    o = cfg.optimizer
    if o.moments_dtype == "bfloat16" and max(o.betas) > 0.99:
        yield (
            f"optimizer.moments_dtype=bfloat16 with optimizer.betas={list(o.betas)}: what a beta above 0.99 takes from a "
            "moment bfloat16 may round away, so that it would stay where it is; lower it, or use float32"
        )
    if cfg.optimizer.min_lr > cfg.optimizer.lr:
        yield f"optimizer.min_lr={cfg.optimizer.min_lr:g} is above optimizer.lr={cfg.optimizer.lr:g}"


def _shaping(cfg: RunConfig) -> Iterator[str]:
    if cfg.shaping.refill.rounds and cfg.train.mode == "rollout-only":
        yield "shaping.refill is about what a step trains on: leave it out with train.mode=rollout-only"
    if (cfg.shaping.curriculum.column is None) != (cfg.shaping.curriculum.steps == 0):
        yield "shaping.curriculum needs both column and steps: by which numbers the rows are sorted, and for how long"
    if (cfg.shaping.replay.threshold > 0) != (cfg.shaping.replay.max_age > 0):
        yield "shaping.replay needs both threshold and max_age: which successes are kept, and for how many steps"
    buffer, most = cfg.shaping.overlong.buffer, cfg.protocol.sampled_limit
    if buffer > most:
        yield (
            f"shaping.overlong.buffer={buffer} is more than a conversation can sample, which is {most} tokens (the lower of "
            "protocol.max_response_tokens and max_rounds * max_turn_tokens): lower it"
        )


def _conversation(cfg: RunConfig) -> Iterator[str]:
    p = cfg.protocol
    searches = p.image_searches + p.text_searches
    if p.max_rounds == 1 and searches:
        yield (
            f"protocol.max_rounds=1 leaves no turn to answer in after a search, and {searches} searches are allowed: set "
            "max_rounds to at least 2, or image_searches=0 and text_searches=0"
        )
    if p.max_turn_tokens > p.max_response_tokens:
        yield (
            f"protocol.max_turn_tokens={p.max_turn_tokens} is above max_response_tokens={p.max_response_tokens}, "
            "which holds the whole conversation"
        )


def _micro_batches(cfg: RunConfig) -> Iterator[str]:
    """A conversation above the budget gets a micro-batch of its own, so the budget bounds no memory if the common one is."""
    budget, p = cfg.megatron.tokens_per_microbatch, cfg.protocol
    least = p.max_prompt_tokens + p.max_turn_tokens
    if budget < least:
        yield (
            f"megatron.tokens_per_microbatch={budget} is less than one prompt and one turn may take "
            f"(protocol.max_prompt_tokens + max_turn_tokens = {least}): raise it, or lower those"
        )
