"""The seam: what a model may call. A tool that ships is a file of this room with `TOOL = <subclass of Tool>` in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, ValidationError

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.config.section import Affects, Section
from megatron_mmsr1.data.images import CanonicalImage
from megatron_mmsr1.protocol.results import ImageHit, TextHit
from megatron_mmsr1.protocol.segments import IMAGE, Segment, data, text
from megatron_mmsr1.search.wire import ImageReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus

FAILED = "The tool failed. Please go on without it."


class ToolSettings(Section):
    """What the section of any tool may say. A tool's own settings are a subclass."""

    AFFECTS = Affects.ROLLOUT

    use: str = Field(default="", description="a tool of your own: package.module:Object or path/to/file.py:Object")
    limit: int = Field(default=1, ge=0, description="calls a trajectory")


class Search(Protocol):
    """The search server as the tools see it; `search.client.SearchClient` is one. Failures come back as a status, never as an
    exception. `call` names the call within its run, the same each time the run is repeated."""

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply: ...
    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply: ...


@dataclass(slots=True, frozen=True)
class Picture:
    """A picture of the conversation: its bytes as they came, and the form that engine and trainer see."""

    original: bytes
    image: CanonicalImage


class Pictures(Protocol):
    """Makes a `Picture` of bytes that are not bigger than `max_pixels` and not smaller than `min_pixels` (default: the model's
    own limits, within which they must lie). Raises data.images.ImageError."""

    def __call__(self, data: bytes, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Awaitable[Picture]: ...


@dataclass(slots=True, frozen=True)
class Scene:
    """What a call may use of its conversation.

    `pictures`: all so far, those of the question first, then those of results, in the order in which the model saw them.
    `picture`: the one that the question is about. `call`: the call's own name, the same in every repetition of the run.
    """

    question: str
    pictures: Sequence[Picture]
    picture: bytes | None
    search: Search | None
    top_k: int
    call: str
    make_picture: Pictures


@dataclass(slots=True, frozen=True)
class Result:
    """What a call gave. `body`: its text, with an `IMAGE` for each of `pictures`, in order; read only where the status is OK or
    EMPTY. `hits`: what was found, for a person. The other fields are those of `trajectory.ToolCall`."""

    status: ToolStatus
    body: list[Segment] = field(default_factory=list[Segment])
    pictures: list[Picture] = field(default_factory=list[Picture])
    hits: tuple[ImageHit | TextHit, ...] = ()
    results: int = 0
    seconds: float = 0.0
    cached: bool = False
    backend: str = ""
    detail: str = ""
    degraded: bool = False

    @classmethod
    def of(cls, found: str, pictures: Sequence[Picture] = (), **more: Any) -> Result:
        """A result of words that are not ours, pictures first."""
        return cls(ToolStatus.OK, [*[IMAGE] * len(pictures), data(found)], list(pictures), results=1, **more)

    @classmethod
    def refused(cls, why: str) -> Result:
        """The call asks for what cannot be: the model's mistake, not an outage."""
        return cls(ToolStatus.REFUSED, detail=why)


class ArgumentsError(ValueError):
    """The arguments of a call are not what the tool takes."""


class Tool(ABC):
    """One tool. `name` is what the model calls it by, and its key under `tools` in the config.

    `kind`: its short name in metrics and events (default: the name). `price`: "search" for a call of the search server, which
    has budgets; "metered" for another service that is paid by the call; "local" for one that costs nothing but time.
    `Arguments`: a Section whose fields are the call's arguments, in the order of a tag's body. `heading` opens its result in a
    protocol of sentences. `cites`: its results are sources that an answer may name. `own_deadline`: `run` bounds itself, and
    `rollout.tool_timeout_s` is not applied around it.

    A tool belongs to one process, and serves all of its conversations at once.
    """

    name: str = ""
    kind: str = ""
    description: str = ""
    price: ClassVar[Literal["search", "metered", "local"]] = "local"
    heading: ClassVar[str] = "Result: "
    cites: ClassVar[bool] = False
    own_deadline: ClassVar[bool] = False
    Settings: ClassVar[type[ToolSettings]] = ToolSettings
    Arguments: ClassVar[type[Section]] = Section
    # In a protocol of tags a call is <tag>body</tag>; default: the name.
    tag: str = ""

    def __init__(self, settings: ToolSettings | None = None, name: str = "") -> None:
        self.settings: Any = settings if settings is not None else self.Settings()
        # Of the instance: one file may serve under several names.
        self.name = name or type(self).name
        self.kind = type(self).kind or self.name
        self.tag = type(self).tag or self.name

    @abstractmethod
    async def run(self, arguments: Any, scene: Scene) -> Result:
        """Do it; `arguments` is an `Arguments`. An outage is a status of the result. An exception is a defect and ends the
        run, with this file's name."""

    def limit(self, protocol: ProtocolConfig) -> int:
        """Calls a trajectory."""
        return self.settings.limit

    def read(self, arguments: Mapping[str, Any]) -> Any:
        """`arguments` as the model wrote them, checked. Raises ArgumentsError that names what is wrong, for the model."""
        try:
            return self.Arguments.model_validate(dict(arguments))
        except ValidationError as e:
            wrong = [f"{'.'.join(map(str, err['loc'])) or 'arguments'}: {err['msg']}" for err in e.errors(include_input=False)]
            raise ArgumentsError("; ".join(wrong[:3])) from None

    def shown(self, arguments: Mapping[str, Any]) -> str:
        """The call for a person, as dumps and demos show it: "" where it takes no arguments."""
        return self.write_tag(arguments) if arguments else ""

    def failure(self, result: Result) -> list[Segment]:
        """What the model is told of a call that found nothing because it failed."""
        return [text(f"[{self.name}] "), *([data(result.detail)] if result.status is ToolStatus.REFUSED else [text(FAILED)])]

    # -------------------------------------------------------------------------------------------- how a call looks
    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments, as function calling has it."""
        made = self.Arguments.model_json_schema()
        fields = {k: {x: y for x, y in v.items() if x != "title"} for k, v in made.get("properties", {}).items()}
        return {"type": "object", "properties": fields, "required": made.get("required", [])}

    def read_tag(self, body: str) -> Mapping[str, Any] | None:
        """Arguments from the inside of this tool's tag: by default the first argument is the whole body. None: no call of this
        tool. Raises ValueError for a call that cannot be read at all, which ends the trajectory."""
        fields = list(self.Arguments.model_fields)
        if not fields:
            return {} if not body.strip() else None
        return {fields[0]: body.strip()}

    def write_tag(self, arguments: Mapping[str, Any]) -> str:
        """The inverse of `read_tag`."""
        return str(next(iter(arguments.values()), ""))

    # ------------------------------------------------------------------------------------------------------ serving
    def required(self, question: str, has_picture: bool) -> Mapping[str, Any] | None:
        """The arguments of a call that serving makes for a question where a search is required; None: cannot be made."""
        return None

    # Whether the model may write the required call's argument itself, once the call is begun for it.
    opens: ClassVar[bool] = False
