"""The typed settings of a served model: YAML beside the weights (`serving.yaml`, which `mmsr1 export` writes) and
`key=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from megatron_mmsr1.config import ENGINE, EnginePart, ModelConfig, ProtocolConfig, RolloutConfig, SearchConfig
from megatron_mmsr1.config.explain import explain_all
from megatron_mmsr1.config.reading import override as apply_override
from megatron_mmsr1.config.reading import read_mapping
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.config.tools import ToolsConfig
from megatron_mmsr1.errors import UsageError

FILE = "serving.yaml"


class LimitsSection(Section):
    """What a caller may ask for. Those a key are over all of its callers, on this gateway."""

    body_bytes: int = Field(default=20_000_000, gt=0, description="of a request")
    messages: int = Field(default=256, gt=0, description="in a conversation")
    images: int = Field(default=4, ge=0, description="pictures in a conversation")
    image_bytes: int = Field(default=8_000_000, gt=0, description="of a picture")
    image_pixels: int = Field(default=16_000_000, gt=0, description="of a picture")
    deadline_s: float = Field(default=120.0, gt=0, description="an answer as a whole, and the most that a request may ask for")
    concurrency: int = Field(default=64, gt=0, description="answers being made at once")
    queue: int = Field(default=192, ge=0, description="requests that wait for that; more are answered 429")
    requests_per_minute: int | None = Field(default=None, gt=0, description="a key")
    key_concurrency: int | None = Field(default=None, gt=0, description="a key")
    searches_per_day: int | None = Field(default=None, ge=0, description="a key, UTC day")


class GatewaySection(Section):
    """The OpenAI-compatible gateway."""

    host: str = Field(default="127.0.0.1", description="anything but loopback needs `keys`")
    port: int = Field(default=8000, ge=0, le=65535)
    name: str | None = Field(default=None, description="the model's name at the gateway; default: its directory's")
    keys: str | None = Field(default=None, description="file of hashed API keys (mmsr1 serve --new-key NAME)")
    keepalive_s: float = Field(default=10.0, gt=0, description="between comments in a stream that has nothing to say")
    remote_images: bool = Field(default=True, description="fetch a user's image_url (guarded); false: data URIs only")
    metrics: bool = True
    hosts: list[str] = Field(
        default_factory=list,
        description="without keys, names beside localhost by which the gateway may be called (a page may give its own name our"
        " address); with keys any name will do",
    )
    limits: LimitsSection = LimitsSection()


class ServeConfig(Section):
    model: ModelConfig
    protocol: ProtocolConfig = ProtocolConfig()
    tools: ToolsConfig = Field(default_factory=dict, description="as in a run's config")
    rollout: RolloutConfig = RolloutConfig()
    engine: EnginePart = Field(default_factory=ENGINE.make)
    replicas: int = Field(default=1, gt=0, description="engines to start, each with engine.sglang's own tp_size and dp_size")
    router: bool = Field(
        default=False,
        description="sglang-router (the extra) before the engines that are started; false: the gateway itself keeps a "
        "conversation with the engine that has its beginning cached",
    )
    search: SearchConfig = SearchConfig()
    searches: dict[str, str] = Field(
        default_factory=dict,
        description="NAME: URL of further search servers (a snapshot, say) that a request may name",
    )
    gateway: GatewaySection = GatewaySection()
    temperature: float = Field(default=0.0, ge=0, description="where a request names none")
    forced_reason: str = Field(
        default="I should look this up.", description="the reasoning that is written for the model where a search is required"
    )
    runs: str | None = Field(default=None, description="directory of training runs that the app's replay tab may open")

    @property
    def name(self) -> str:
        return self.gateway.name or Path(self.model.path).resolve().name


def load(model: str | None, file: str | None, overrides: list[str]) -> ServeConfig:
    """`file`, else `serving.yaml` of the checkpoint `model`, else defaults; then overrides; `model` names the weights.

    Raises UsageError that names the file and the key, with a suggestion for a misspelt one.
    """
    raw: dict[str, Any] = {}
    where = "serve"
    beside = Path(model) / FILE if model is not None else None
    path = Path(file) if file is not None else beside if beside is not None and beside.is_file() else None
    if path is not None:
        where = str(path)
        raw = read_mapping(path)
        _beside(path.parent, raw)
    if model is not None and isinstance(raw.get("model") or {}, dict):
        raw["model"] = {**(raw.get("model") or {}), "path": model}
    for item in overrides:
        apply_override(raw, item)
    return _parse(raw, where)


def override(cfg: ServeConfig, overrides: list[str]) -> ServeConfig:
    """`cfg` with `key=value` on top. Raises UsageError as `load`."""
    raw = cfg.model_dump(mode="json")
    for item in overrides:
        apply_override(raw, item)
    return _parse(raw, "demo")


def _parse(raw: dict[str, Any], where: str) -> ServeConfig:
    try:
        return ServeConfig.model_validate(raw)
    except ValidationError as e:
        raise UsageError(f"{where}:\n{explain_all(e, ServeConfig, raw)}") from None


def _beside(directory: Path, raw: dict[str, Any]) -> None:
    """Prompts of its own lie beside the file that names them."""
    section = raw.get("protocol")
    if isinstance(section, dict) and isinstance(named := section.get("prompts"), str) and (directory / named).is_file():
        section["prompts"] = str(directory / named)
