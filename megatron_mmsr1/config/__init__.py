"""The typed settings of a run: YAML, then `key=value` overrides. Importable without torch.

Every section forbids unknown keys and answers a typo with a suggestion. `megatron:` and `sglang:` pass native fields through
to megatron-core's provider and to SGLang's server arguments; their names are checked where those packages are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from megatron_mmsr1.config.alarms import AlarmsConfig
from megatron_mmsr1.config.algorithm import AlgorithmConfig
from megatron_mmsr1.config.checks import problems
from megatron_mmsr1.config.explain import explain_all
from megatron_mmsr1.config.lora import LoraConfig
from megatron_mmsr1.config.megatron import MegatronConfig
from megatron_mmsr1.config.placement import PlacementConfig
from megatron_mmsr1.config.reading import override, read_mapping
from megatron_mmsr1.config.search import SearchConfig
from megatron_mmsr1.config.section import Affects, Logging, Machine, Rollout, Section, Training
from megatron_mmsr1.config.shaping import ShapingConfig
from megatron_mmsr1.config.slurm import SlurmConfig
from megatron_mmsr1.config.tools import ToolsConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.settings import PartSettings
from megatron_mmsr1.untyped import is_dict

ENGINE = PartSettings("megatron_mmsr1.rollout.engines", "sglang")
SYNC = PartSettings("megatron_mmsr1.sync.transports", "disk")
REWARD = PartSettings("megatron_mmsr1.reward", "mmsearch")

_PROMPTS = Path(__file__).parent.parent / "protocol" / "prompts"


class ModelConfig(Section):
    AFFECTS = Affects.ROLLOUT

    path: str = Field(description="Hugging Face checkpoint directory: the policy at step 0")
    reference: Training[str | None] = Field(
        default=None, description="checkpoint of the frozen reference; default: the same as path"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    family: str | None = Field(
        default=None, description="model family: a name or package.module:Object; default: by config.json's architecture"
    )
    freeze_vision: Training[bool] = Field(default=True, description="keep the vision tower as it is (its merger too)")
    freeze: Training[list[str]] = Field(
        default_factory=list, description="further parts to keep, of tower, merger, language and embeddings"
    )
    lora: Training[LoraConfig | None] = Field(
        default=None, description="train adapters of low rank in the place of the language model; default: all of its weights"
    )
    min_pixels: int = Field(default=56 * 56, gt=0, description="smaller images are enlarged to this many pixels")
    max_pixels: int = Field(default=28 * 28 * 1024, gt=0, description="larger images are shrunk to this many pixels")

    @property
    def frozen(self) -> frozenset[str]:
        """The parts that take no gradient: `freeze`; tower and merger under `freeze_vision`; under `lora` the language model
        and its embeddings."""
        vision = {"tower", "merger"} if self.freeze_vision else set[str]()
        return frozenset(self.freeze) | vision | ({"language", "embeddings"} if self.lora else set[str]())

    @property
    def vision_frozen(self) -> bool:
        """Whether a picture's features are the same all run long: neither tower nor merger is trained."""
        return {"tower", "merger"} <= self.frozen


class DataConfig(Section):
    AFFECTS = Affects.ROLLOUT

    train: list[str] = Field(default_factory=list, description="parquet files in veRL's columns")
    heldout: list[str] = Field(default_factory=list, description="parquet files to evaluate on")
    prompts_per_step: int = Field(default=32, gt=0, description="prompts (groups) a step, over all data-parallel ranks")
    group_size: int = Field(default=8, gt=0, description="rollouts a prompt")
    shuffle: bool = True
    bad_rows: Literal["error", "skip"] = Field(
        default="error", description="what a row that cannot be read does; skipped rows are counted"
    )
    check: Machine[Literal["all", "sample", "none"]] = Field(
        default="all", description="rows that are read, decoded and tokenised before a run starts; sample: 1,000, evenly spread"
    )


class ProtocolConfig(Section):
    AFFECTS = Affects.ROLLOUT

    name: str = Field(default="mmsearch", description="mmsearch, hermes, or your own as package.module:Object")
    options: dict[str, Any] = Field(default_factory=dict, description="the protocol's own settings")
    prompts: str = Field(
        default="mmsearch",
        description="one that ships (atlas, hermes, maths, mmsearch), or a YAML file; default: the protocol's or mmsearch",
    )
    max_rounds: int = Field(default=3, gt=0, description="assistant turns a trajectory")
    image_searches: int = Field(default=1, ge=0, description="image searches a trajectory")
    text_searches: int = Field(default=2, ge=0, description="text searches a trajectory")
    top_k: int = Field(default=5, gt=0, description="results a search")
    max_prompt_tokens: int = Field(default=4096, gt=0, description="the first prompt, image tokens included")
    max_turn_tokens: int = Field(default=2048, gt=0, description="sampled tokens a turn")
    max_response_tokens: int = Field(
        default=8192, gt=0, description="the conversation after the first prompt, observations included"
    )

    @property
    def sampled_limit(self) -> int:
        """The most tokens that a conversation can sample."""
        return min(self.max_response_tokens, self.max_rounds * self.max_turn_tokens)

    @model_validator(mode="before")
    @classmethod
    def _own_prompts(cls, raw: Any) -> Any:
        """A protocol that ships with prompts of its own is used with them, unless others are named."""
        if is_dict(raw) and "prompts" not in raw and (_PROMPTS / f"{raw.get('name')}.yaml").is_file():
            return raw | {"prompts": raw["name"]}
        return raw


class RolloutConfig(Section):
    AFFECTS = Affects.ROLLOUT

    temperature: float = Field(default=1.0, gt=0)
    eval_temperature: float = Field(default=1.0, ge=0, description="0 is greedy; 1 measures the policy that GRPO trains")
    concurrency: Machine[int] = Field(default=1024, gt=0, description="trajectories in flight a worker")
    generate_timeout_s: Machine[float] = Field(default=300, gt=0, description="deadline of one turn")
    retries: Machine[int] = Field(default=2, ge=0, description="retries of a failed generate or tool call")
    tool_timeout_s: Machine[float] = Field(default=30, gt=0)
    reward_workers: Machine[int] = Field(
        default=2, gt=0, description="processes a rollout worker that run a reward of your own"
    )
    reward_timeout_s: float = Field(default=60, gt=0, description="deadline of one call of such a reward; then it has failed")
    tool_concurrency: Machine[int] = Field(
        default=128, gt=0, description="tool calls in flight a worker; more wait, under no deadline"
    )
    tool_failure: Literal["neutral_observation", "retry_trajectory", "drop_trajectory"] = Field(
        default="neutral_observation",
        description="what an infrastructure failure of a tool does: the model is told and goes on; the trajectory begins anew; "
        "it ends. None of them is scored or trained on as if it were the model's own doing",
    )
    alert_above: Logging[float] = Field(
        default=0.02, ge=0, le=1, description="share of a step's tool calls that fail: a warning"
    )
    pause_above: Machine[float] = Field(
        default=0.2, ge=0, le=1, description="share of the latest tool calls that fail: a pause"
    )
    pause_limit_s: Machine[float] = Field(default=3600.0, gt=0, description="a longer pause ends the run, which can be resumed")


class EngineConfig(Section):
    """What every engine has; the one that `name` names adds its own keys (rollout/engines/)."""

    AFFECTS = Affects.MACHINE

    name: str = Field(default="sglang", description="sglang, transformers, or your own as package.module:Object")
    urls: list[str] = Field(default_factory=list, description="engines that run already; default: one is started")
    startup_timeout_s: float = Field(default=600, gt=0)
    hung_after_s: float = Field(
        default=120,
        gt=0,
        description="an engine that generates nothing for so long is given up: its turns move, and one that was started here "
        "is replaced. Longer than an update of its weights takes",
    )
    outage_s: float = Field(default=300, ge=0, description="how long a turn waits for an engine while none answers")


EnginePart = Annotated[SerializeAsAny[EngineConfig], ENGINE]


class OptimizerConfig(Section):
    AFFECTS = Affects.TRAINING

    lr: float = Field(default=2e-6, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine", "sigmoid"] = "constant"
    decay_at: int = Field(default=60, gt=0, description="sigmoid: the step at which half of the fall to min_lr is done")
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad: float = Field(default=1.0, ge=0)
    moments_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Adam's two moments between updates, which are computed in float32 whatever it is"
    )


class TrainConfig(Section):
    AFFECTS = Affects.MACHINE

    steps: int = Field(default=100, gt=0)
    ranks: int = Field(default=1, gt=0, description="training processes, over all nodes")
    threads_per_rank: int | None = Field(default=None, description="CPU threads a rank; default: cores / ranks")
    save_interval: int = Field(default=50, gt=0)
    async_checkpoint: bool = Field(
        default=True, description="checkpoints are copied in host memory and written while training goes on; false: it waits"
    )
    checkpoint_failures: int = Field(
        default=2, ge=0, description="checkpoints in a row that the disk may refuse before the run ends"
    )
    keep_checkpoints: int = Field(default=2, gt=0, description="the last ones stay; those that the next keys name stay too")
    keep_every: int = Field(default=0, ge=0, description="checkpoints whose step this divides; 0: none")
    keep_hours: float = Field(default=0.0, ge=0, description="checkpoints that are younger, in hours")
    keep_best: int = Field(default=0, ge=0, description="so many checkpoints that are best by keep_metric")
    keep_metric: str = Field(
        default="eval/reward",
        description="eval/reward, eval/accuracy: of the evaluation after the same step; else a metric of the last step, as "
        "reward/mean. With a minus before it less is better: -loss",
    )
    eval_interval: int = Field(default=0, ge=0, description="0: only before and after")
    eval_limit: int | None = None
    eval_max_failed: float = Field(
        default=0.02, ge=0, le=1, description="share of an evaluation's questions that may fail in the engine or a tool"
    )
    sync: Annotated[SerializeAsAny[Section], SYNC] = Field(
        default_factory=SYNC.make,
        description="how weights reach the engines: disk, tensors, or your own; name, or name and settings",
    )
    max_skipped_updates: int = Field(
        default=3, ge=0, description="optimizer updates in a row that may be skipped since their gradients are not finite"
    )
    keep_weights: int = Field(default=2, gt=0, description="exported weight versions that stay on disk")
    mode: Literal["full", "rollout-only", "train-only"] = "full"
    replay: str | None = Field(default=None, description="train-only: the dump directory whose rollouts are trained on")


class LoggingConfig(Section):
    AFFECTS = Affects.LOGGING

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "megatron-mmsr1"
    dump_rollouts: bool = True


class SftConfig(Section):
    """Supervised cold start: where the demonstrations come from."""

    AFFECTS = Affects.TRAINING

    source: str = Field(
        default="atlas", description="atlas, maths: demonstrations drawn as they are needed; else a JSONL of trajectories"
    )
    examples_per_step: int = Field(default=32, gt=0)
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the source")

    @property
    def drawn(self) -> bool:
        """Whether the demonstrations are a made world's, and no file's."""
        return self.source in ("atlas", "maths")


class RunConfig(Section):
    name: Logging[str] = "run"
    seed: Rollout[int] = 0
    output: Machine[str] = Field(default="runs/run", description="everything the run writes goes here")
    model: ModelConfig
    data: DataConfig = DataConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    tools: Rollout[ToolsConfig] = Field(
        default_factory=dict, description="further tools by name, each with its settings: {crop: {limit: 1}}"
    )
    rollout: RolloutConfig = RolloutConfig()
    search: SearchConfig = SearchConfig()
    engine: EnginePart = Field(default_factory=ENGINE.make)
    reward: Rollout[Annotated[SerializeAsAny[Section], REWARD]] = Field(default_factory=REWARD.make)
    algorithm: AlgorithmConfig = AlgorithmConfig()
    shaping: ShapingConfig = ShapingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    megatron: MegatronConfig = MegatronConfig()
    train: TrainConfig = Field(default_factory=TrainConfig)
    placement: PlacementConfig = PlacementConfig()
    slurm: SlurmConfig = SlurmConfig()
    sft: SftConfig = SftConfig()
    logging: LoggingConfig = LoggingConfig()
    alarms: AlarmsConfig = AlarmsConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        found = problems(self)
        if found:
            raise ValueError("\n  ".join(found))
        return self

    @property
    def searches(self) -> bool:
        """Whether the run needs a search server: a trajectory may search, or the config says where (an own tool may)."""
        allowed = self.protocol.image_searches + self.protocol.text_searches
        return bool(allowed or self.search.url or self.search.corpus or self.search.text.backend != "bm25")

    @property
    def reference_is_policy(self) -> bool:
        """Whether the policy without its adapters is the reference, so that no second model is needed: they are all that is
        trained, and the reference is what the policy began as."""
        m = self.model
        same = m.reference in (None, m.path) and not self.algorithm.reference_interval
        return m.lora is not None and m.vision_frozen and same

    @property
    def data_parallel(self) -> int:
        m = self.megatron
        return self.train.ranks // (m.tensor_parallel * m.pipeline_parallel * m.context_parallel)


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML: 3, true, [a, b], null).

    Raises UsageError that names the file or the override, the key and, for a misspelt one, the key that was meant.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no config at {path}")
    raw = read_mapping(path)
    for item in overrides:
        override(raw, item)
    return parse(raw, str(path))


def parse(raw: dict[str, Any], where: str = "config") -> RunConfig:
    """A RunConfig from plain data; UsageError as `load` gives it."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as e:
        raise UsageError(f"{where}:\n{explain_all(e, RunConfig, raw)}") from None


def dump(cfg: RunConfig) -> str:
    """The whole config as YAML, defaults included: what a run keeps beside its results."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)
