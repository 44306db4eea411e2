"""The one structure that flows: what a rollout makes, a reward scores, a trainer packs and a dump keeps.

Token ids are the *trainer's view*: every image stands as its full run of `<|image_pad|>` tokens. The engine's view
(one pad an image, which SGLang expands itself) is derived by `Trajectory.engine_ids`, never stored, so the two cannot
drift.

Shapes: T is the number of tokens of one trajectory. `token_ids`, `loss_mask`, `logprobs` and `weight_versions` all
have T entries, each in one flat buffer (`array.array`: 13 bytes a token in all, where lists of Python numbers take over a
hundred). `numpy.asarray(t.token_ids)` is a view of it. Pure Python: no torch, no numpy.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

NOT_CALLS = ("", "answer", "give_up", "invalid")  # actions of an assistant turn that call no tool
ROLES = ("prompt", "assistant", "tool")
UNSAMPLED = -1  # weight_versions entry of a token that no engine sampled

# Field -> type code of its buffer: int32, int8, float32, int32, float32.
BUFFERS = {"token_ids": "i", "loss_mask": "b", "logprobs": "f", "weight_versions": "i", "loss_weights": "f"}


class Status(StrEnum):
    """How a trajectory ended."""

    ANSWERED = "answered"
    GAVE_UP = "gave_up"
    INVALID = "invalid"  # the turn held no action
    OUT_OF_ROUNDS = "out_of_rounds"  # a call in the last round, or past a tool's limit
    OUT_OF_TOKENS = "out_of_tokens"  # a turn or the conversation hit its budget
    ENGINE_ERROR = "engine_error"  # the engine failed after all retries: infrastructure, never trained on
    TOOL_ERROR = "tool_error"  # dropped because of a tool's infrastructure failure (failure policy)
    ABORTED = "aborted"


class ToolStatus(StrEnum):
    """What became of one tool call. `infrastructure` ones are never the model's fault and are counted apart."""

    OK = "ok"
    EMPTY = "empty"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    UPSTREAM_ERROR = "upstream_error"
    REFUSED = "refused"
    BUDGET = "budget"

    @property
    def good(self) -> bool:
        """The tool did what it was asked for, whether or not there was anything to find."""
        return self in (ToolStatus.OK, ToolStatus.EMPTY)

    @property
    def infrastructure(self) -> bool:
        return self in (ToolStatus.TIMEOUT, ToolStatus.RATE_LIMITED, ToolStatus.UPSTREAM_ERROR, ToolStatus.BUDGET)


@dataclass(slots=True, frozen=True)
class ImageRef:
    """An image by content. `grid_thw` counts 14-pixel patches; the tokens are t*h*w // merge**2."""

    sha256: str
    grid_thw: tuple[int, int, int]

    def tokens(self, merge_size: int = 2) -> int:
        t, h, w = self.grid_thw
        return t * h * w // merge_size**2


@dataclass(slots=True)
class ToolCall:
    kind: str  # the tool's: "image" and "text" for the searches, else its name
    query: str  # its arguments as a person reads them: the text query; "" for an image search
    status: ToolStatus
    seconds: float = 0.0
    results: int = 0
    cached: bool = False
    backend: str = ""
    detail: str = ""
    degraded: bool = False  # part of the result is missing, through no fault of the query


@dataclass(slots=True)
class Turn:
    """Tokens [start, end) of the trajectory. Prompts and tools' observations are context; assistant turns were sampled."""

    role: str  # "prompt" | "assistant" | "tool"
    start: int
    end: int
    text: str
    action: str = ""  # assistant turns: answer | give_up | invalid, else the names of the tools called, with + between
    tool: ToolCall | None = None  # tool turns: the call that this observation answers
    seconds: float = 0.0
    digest: str = ""  # an outline's tool turns: a hash of the text that it leaves out


@dataclass(slots=True)
class Trajectory:
    prompt_id: str
    group_id: str
    sample_index: int
    question: str
    golden_answers: list[str]
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    loss_mask: array[int] = field(default_factory=lambda: array("b"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    weight_versions: array[int] = field(default_factory=lambda: array("i"))
    images: list[ImageRef] = field(default_factory=list[ImageRef])
    turns: list[Turn] = field(default_factory=list[Turn])
    status: Status = Status.ABORTED
    reward: float | None = None
    reward_parts: dict[str, float] = field(default_factory=dict[str, float])
    loss_weights: array[float] | None = None  # SFT only: a weight a token; None means the mask itself
    category: str = ""  # search_free | search_required | crop_required, where the data say so
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    # Calls whose observation is not in the tokens: those of tries that were given up, one that ended the trajectory, and one
    # whose observation did not fit. They were made, and paid.
    unobserved: list[ToolCall] = field(default_factory=list[ToolCall])
    step: int | None = None  # of the run, in which it was rolled out; None outside of training
    calls_allowed: int = 0  # calls that this conversation might have made, all tools together; 0: not known

    def __post_init__(self) -> None:
        for name in BUFFERS:
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, buffer(name, values))

    def __len__(self) -> int:
        """T; of an `outline` too."""
        return len(self.token_ids) or (self.turns[-1].end if self.turns else 0)

    @property
    def is_outline(self) -> bool:
        """Whether its tokens are elsewhere."""
        return not self.token_ids and bool(self.turns)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the assistant's turns."""
        return sum(t.end - t.start for t in self.turns if t.role == "assistant")

    def append(
        self,
        role: str,
        token_ids: Sequence[int],
        text: str,
        *,
        logprobs: Sequence[float] | None = None,
        weight_versions: Sequence[int] | None = None,
        images: tuple[ImageRef, ...] | list[ImageRef] = (),
        action: str = "",
        tool: ToolCall | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Append one turn, text and images together. Only an assistant turn is sampled, and so trained on.

        `token_ids` are expanded (every image its full run of pads). Raises ValueError if an assistant turn lacks a
        log-prob a token, so that nothing unsampled can be trained on.
        """
        n = len(token_ids)
        if role not in ROLES:
            raise ValueError(f"role {role!r}: one of {', '.join(ROLES)}")
        sampled = role == "assistant"
        if sampled and (logprobs is None or len(logprobs) != n):
            raise ValueError(f"assistant turn of {n} tokens came with {len(logprobs or [])} log-probs")
        if weight_versions and len(weight_versions) != n:
            raise ValueError(f"{role} turn of {n} tokens came with {len(weight_versions)} weight versions")
        start = len(self.token_ids)
        self.token_ids.extend(token_ids)
        self.loss_mask.extend([int(sampled)] * n)
        self.logprobs.extend(logprobs if sampled and logprobs is not None else [0.0] * n)
        self.weight_versions.extend(weight_versions if weight_versions else [UNSAMPLED] * n)
        self.images += list(images)
        self.turns.append(Turn(role, start, start + n, text, action, tool, seconds))

    def engine_ids(self, image_pad_id: int, merge_size: int = 2) -> list[int]:
        """The engine's view: each image's run of pads collapsed to one."""
        return collapse_pads(self.token_ids, image_pad_id, [i.tokens(merge_size) for i in self.images])

    @property
    def assistant_texts(self) -> list[str]:
        return [t.text for t in self.turns if t.role == "assistant"]

    @property
    def observed_calls(self) -> list[ToolCall]:
        """The calls whose observation the model read."""
        return [t.tool for t in self.turns if t.tool is not None]

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Every call that was made, those first that left no observation (`unobserved`)."""
        return [*self.unobserved, *self.observed_calls]

    @property
    def called(self) -> list[str]:
        """The names of the tools that the model asked for, turn by turn, whatever came of it."""
        turns = (t.action for t in self.turns if t.role == "assistant" and t.action not in NOT_CALLS)
        return [name for action in turns for name in action.split("+")]

    @property
    def searched(self) -> bool:
        """Whether the model asked for a tool at all, whatever the tool made of it."""
        return bool(self.called)

    @property
    def infrastructure_failure(self) -> bool:
        """An engine or a tool let the model down: such a trajectory is never charged to the model. Calls of tries that were
        given up do not count: no token of theirs is left."""
        return self.status in (Status.ENGINE_ERROR, Status.TOOL_ERROR, Status.ABORTED) or any(
            c.status.infrastructure for c in self.observed_calls
        )

    def check(self, image_pad_id: int, merge_size: int = 2) -> None:
        """Raise ValueError unless every invariant holds: equal lengths, turns that tile, pads that match the images, a
        mask that covers assistant turns only."""
        n = len(self.token_ids)
        me = f"{self.prompt_id}#{self.sample_index}"
        for name in ("loss_mask", "logprobs", "weight_versions", "loss_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise ValueError(f"{me}: {name} has {len(values)} of {n} entries")
        at = 0
        for turn in self.turns:
            if turn.start != at:
                raise ValueError(f"{me}: turn at {turn.start} does not follow {at}")
            want = int(turn.role == "assistant")
            if self.loss_mask[turn.start : turn.end].count(want) != turn.end - turn.start:
                raise ValueError(f"{me}: loss mask disagrees with {turn.role} turn at {turn.start}")
            at = turn.end
        if at != n:
            raise ValueError(f"{me}: turns end at {at}, tokens at {n}")
        pads = self.token_ids.count(image_pad_id)
        want = sum(i.tokens(merge_size) for i in self.images)
        if pads != want:
            raise ValueError(f"{me}: {pads} image pads for {want} image features")

    def outline(self) -> Trajectory:
        """The same without its tokens, texts and pictures: what metrics, advantages and limits are told from, in a few hundred
        bytes. Turns keep their places, so that lengths are still known, and a hash of what a tool said."""
        d = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in BUFFERS}
        d["turns"] = [Turn(t.role, t.start, t.end, "", t.action, t.tool, t.seconds, _digest(t)) for t in self.turns]
        return Trajectory(**d)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives an equal trajectory back."""
        buffers = {name: None if (b := getattr(self, name)) is None else b.tolist() for name in BUFFERS}
        return self.described() | buffers

    def described(self) -> dict[str, Any]:
        """All but the buffers, JSON-ready."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in BUFFERS}
        out["images"] = [{"sha256": i.sha256, "grid_thw": list(i.grid_thw)} for i in self.images]
        out["turns"] = [_as_dict(t) | {"tool": _as_dict(t.tool) if t.tool else None} for t in self.turns]
        out["unobserved"] = [_as_dict(c) for c in self.unobserved]
        return out

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Trajectory:
        """Buffers may be lists or arrays; those that are missing are empty."""
        d = dict(d)
        d["images"] = [ImageRef(i["sha256"], tuple(i["grid_thw"])) for i in d["images"]]
        d["turns"] = [_turn(t) for t in d["turns"]]
        d["unobserved"] = [_call(c) for c in d.get("unobserved", [])]
        d["status"] = Status(d["status"])
        return cls(**d)


def by_group(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """Groups by their id, and members within a group, in the order in which they come."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(t.group_id, []).append(t)
    return groups


def buffer(name: str, values: Iterable[float]) -> array[Any]:
    """The values of the field `name` in a buffer of its own type; one that is a buffer of that type already, as it is."""
    if isinstance(values, array) and values.typecode == BUFFERS[name]:
        return values
    return array(BUFFERS[name], values)


def _digest(t: Turn) -> str:
    if t.digest or t.role != "tool":
        return t.digest
    return hashlib.blake2b(t.text.encode(), digest_size=8).hexdigest()


def _as_dict(x: Turn | ToolCall) -> dict[str, Any]:
    return {name: getattr(x, name) for name in x.__slots__}


def _turn(d: dict[str, Any]) -> Turn:
    values: dict[str, Any] = {**d, "tool": _call(d["tool"]) if d["tool"] else None}
    return Turn(**values)


def _call(d: dict[str, Any]) -> ToolCall:
    values: dict[str, Any] = {**d, "status": ToolStatus(d["status"])}
    return ToolCall(**values)


def collapse_pads(ids: Sequence[int], image_pad_id: int, pads: Sequence[int]) -> list[int]:
    """Replace the i-th image's run of `pads[i]` pad tokens by one. Raises ValueError if the runs do not match."""
    out: list[int] = []
    token_ids = list(ids)
    at, image = 0, 0
    while at < len(token_ids):
        if token_ids[at] != image_pad_id:
            out.append(token_ids[at])
            at += 1
            continue
        if image >= len(pads) or token_ids[at : at + pads[image]] != [image_pad_id] * pads[image]:
            raise ValueError(f"image pads at token {at} do not match image {image} of {len(pads)}")
        out.append(image_pad_id)
        at += pads[image]
        image += 1
    if image != len(pads):
        raise ValueError(f"{len(pads)} images but {image} runs of pads")
    return out


def expand_pads(engine_ids: list[int], image_pad_id: int, pads: list[int]) -> list[int]:
    """The inverse of `collapse_pads`: the i-th pad becomes `pads[i]` of them. ValueError if the counts differ."""
    if engine_ids.count(image_pad_id) != len(pads):
        raise ValueError(f"{len(pads)} images for {engine_ids.count(image_pad_id)} pads")
    out: list[int] = []
    runs = iter(pads)
    for t in engine_ids:
        out += [t] * next(runs) if t == image_pad_id else [t]
    return out


def group_name(step: int, row: int, copy: int = 0) -> str:
    """The `group_id` of a data row's rollouts in a step of the run; `copy`: how often the row came before in that step."""
    return f"{step}/{row}" + (f"/{copy}" if copy else "")
