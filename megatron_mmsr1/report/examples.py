"""Which conversations a report shows, and how their tokens become pieces of a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.eval.metrics import by_kind, kind
from megatron_mmsr1.protocol import IMAGE_PAD
from megatron_mmsr1.report.gather import RunData, Tokenizer
from megatron_mmsr1.report.questions import is_right
from megatron_mmsr1.report.text import in_short, visible
from megatron_mmsr1.trajectory import ImageRef, Trajectory, Turn

LARGE, SMALL = 360, 120  # pixels of a question's picture, of a search result's
BATCH = 16  # tokens decoded together where none is marked alone


@dataclass(slots=True)
class Piece:
    """A stretch of a turn: a text, or a picture (a data: URI)."""

    text: str = ""
    image: str = ""
    width: int = 0
    trained: bool = False
    title: str = ""  # shown on hover: probability and weight version of a sampled token


@dataclass(slots=True)
class TurnView:
    role: str
    label: str
    pieces: list[Piece]
    tokens: int
    trained: int


@dataclass(slots=True)
class Example:
    kind: str
    question: str
    golden: list[str]
    status: str
    reward: str
    parts: list[tuple[str, str]]
    turns: list[TurnView] = field(default_factory=list[TurnView])
    earlier: str = ""
    tokens: int = 0
    tags: str = ""  # right or wrong, searched, changed: what the page filters by
    run: str = ""


def choose(data: RunData, n: int) -> list[Example]:
    """`n` trajectories, kinds in turn; within a kind, outcomes in turn: right and wrong, with a search and without."""
    queues = [_by_outcome(members) for members in by_kind(data.trajectories).values()]
    chosen: list[Trajectory] = []
    while len(chosen) < n and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    store = ImageStore(data.directory / "images")
    order = {id(t): i for i, t in enumerate(t for ts in by_kind(chosen).values() for t in ts)}
    return [_view(t, data, store) for t in sorted(chosen, key=lambda t: order[id(t)])]


def _by_outcome(members: list[Trajectory]) -> list[Trajectory]:
    """Each outcome's first, then each one's second, and so on: the commonest outcome leads."""
    groups: dict[tuple[object, ...], list[Trajectory]] = {}
    for t in members:
        calls = tuple(c.kind for c in t.tool_calls)
        groups.setdefault((is_right(t), calls, t.status), []).append(t)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [g[i] for i in range(max(map(len, ordered))) for g in ordered if i < len(g)]


def _view(t: Trajectory, data: RunData, store: ImageStore) -> Example:
    before = data.earlier.get(t.prompt_id)
    shown = Pictures(store, t.images)
    pad = data.tokenizer.token_to_id(IMAGE_PAD) if data.tokenizer else None
    turns: list[TurnView] = []
    for turn in t.turns:
        if data.tokenizer is not None and pad is not None:
            pieces = list(_token_pieces(t, turn, data.tokenizer, pad, shown))
        else:
            pieces = [Piece(text=visible(turn.text), trained=turn.role == "assistant")]
        turns.append(TurnView(turn.role, _label(turn), pieces, turn.end - turn.start, sum(t.loss_mask[turn.start : turn.end])))
    if pad is None and t.images:
        turns[0].pieces = [shown.take(turns[0].role) for _ in t.images] + turns[0].pieces
    return Example(
        kind=kind(t),
        question=visible(t.question),
        golden=[visible(g) for g in t.golden_answers],
        status=t.status.value.replace("_", " "),
        reward="not scored" if t.reward is None else f"{t.reward:.3g}",
        parts=[(k, f"{v:.3g}") for k, v in t.reward_parts.items()],
        turns=turns,
        earlier=in_short(before) if before else "",
        tokens=len(t),
        tags=_tags(t, before),
        run=data.label,
    )


def _tags(t: Trajectory, before: Trajectory | None) -> str:
    tags = ["right" if is_right(t) else "wrong"]
    tags += ["searched"] if t.searched else []
    tags += ["changed"] if before is not None and is_right(before) != is_right(t) else []
    return " ".join(tags)


def _label(turn: Turn) -> str:
    if turn.tool is not None:
        c = turn.tool
        asked = f' for "{visible(c.query)}"' if c.query else ""
        found = f"{c.results} result{'s' if c.results != 1 else ''}" if c.status == "ok" else c.status.replace("_", " ")
        return f"{c.kind} search{asked}: {found}, {c.seconds:.2f} s{', cached' if c.cached else ''}"
    who = "model" if turn.role == "assistant" else turn.role
    return f"{who}: {turn.action.replace('_', ' ')}" if turn.action else who


class Pictures:
    """The pictures of one trajectory, in order, small enough for a page."""

    def __init__(self, store: ImageStore, refs: list[ImageRef]) -> None:
        self.store, self.refs, self.at = store, refs, 0

    def tokens(self) -> int:
        """Of the next picture; 0 if there is none."""
        return self.refs[self.at].tokens() if self.at < len(self.refs) else 0

    def take(self, role: str) -> Piece:
        sha = self.refs[self.at].sha256
        self.at += 1
        return picture(self.store.get(sha), LARGE if role == "prompt" else SMALL)


def picture(png: bytes, limit: int) -> Piece:
    """The PNG as a data: URI, shrunk to `limit` pixels a side where it is larger; smaller ones are shown enlarged."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
        scale = limit / max(width, height)
        if scale < 1:
            out = io.BytesIO()
            image.resize((max(1, round(width * scale)), max(1, round(height * scale)))).save(out, "PNG", optimize=True)
            png = out.getvalue()
        shown = round(width * min(scale, 3))  # a 56-pixel emblem should be seen, a photograph should not be blown up
    return Piece(image="data:image/png;base64," + base64.b64encode(png).decode(), width=shown)


def _token_pieces(t: Trajectory, turn: Turn, tokenizer: Tokenizer, pad: int, shown: Pictures) -> Iterator[Piece]:
    """Pictures where their pads stand, sampled tokens one by one with their probability, the rest in stretches."""
    at = turn.start
    while at < turn.end:
        if t.token_ids[at] == pad and (n := shown.tokens()):
            yield shown.take(turn.role)
            at += n
            continue
        end = at + 1
        while end < turn.end and t.token_ids[end] != pad and t.loss_mask[end] == t.loss_mask[at]:
            end += 1
        if t.loss_mask[at]:
            yield from _sampled(t, at, end, tokenizer)
        else:
            yield Piece(visible(tokenizer.decode(t.token_ids[at:end].tolist(), skip_special_tokens=False)))
        at = end


def _sampled(t: Trajectory, start: int, end: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    """One piece a token; tokens that only together make a character (bytes of UTF-8) share one."""
    first = start
    for at in range(start, end):
        text = tokenizer.decode(t.token_ids[first : at + 1].tolist(), skip_special_tokens=False)
        if text.endswith("\ufffd") and at + 1 < end and at - first < BATCH:
            continue
        chance = math.exp(min(0.0, sum(t.logprobs[first : at + 1])))
        yield Piece(visible(text), trained=True, title=f"p {chance:.3f}, weights {t.weight_versions[at]}")
        first = at + 1
