"""A trajectory token by token: who wrote what, what was trained on, how sure the model was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from demo.escape import esc
from demo.pictures import img
from demo.render import verb
from megatron_mmsr1.trajectory import ImageRef, Trajectory, Turn

Decode = Callable[[list[int]], str]
MASK, CHANCE = "Loss mask", "Log-probability"
TOGETHER = 16  # tokens decoded together where none ends a character
ROWS = 400  # of a turn's table
# The lower edge of each shade, and how it is read out.
SHADES = ((0.95, "0.95 and more"), (0.8, "0.8 to 0.95"), (0.5, "0.5 to 0.8"), (0.2, "0.2 to 0.5"), (0.0, "below 0.2"))


@dataclass(slots=True, frozen=True)
class Piece:
    """A sampled token (or several that only together make a character), a stretch of context, or a picture."""

    text: str = ""
    trained: bool = False
    logprob: float = 0.0  # of all tokens in it
    ids: tuple[int, ...] = ()
    image: ImageRef | None = None

    @property
    def chance(self) -> float:
        return math.exp(min(0.0, self.logprob))


def pieces(t: Trajectory, turn: Turn, decode: Decode, pad: int, refs: Iterator[ImageRef]) -> Iterator[Piece]:
    """A turn's, in order. `refs` gives the trajectory's pictures; each takes up its whole run of pads."""
    at = turn.start
    while at < turn.end:
        ref = next(refs, None) if t.token_ids[at] == pad and not t.loss_mask[at] else None
        if ref is not None:
            yield Piece(image=ref, ids=(pad,) * ref.tokens())
            at += max(1, ref.tokens())
            continue
        end = at + 1
        while end < turn.end and t.token_ids[end] != pad and t.loss_mask[end] == t.loss_mask[at]:
            end += 1
        if t.loss_mask[at]:
            yield from _sampled(t, at, end, decode)
        else:
            yield Piece(decode(t.token_ids[at:end].tolist()), ids=tuple(t.token_ids[at:end]))
        at = end


def _sampled(t: Trajectory, start: int, end: int, decode: Decode) -> Iterator[Piece]:
    first = start
    for at in range(start, end):
        text = decode(t.token_ids[first : at + 1].tolist())
        if text.endswith("\ufffd") and at + 1 < end and at - first < TOGETHER:
            continue
        yield Piece(text, True, sum(t.logprobs[first : at + 1]), tuple(t.token_ids[first : at + 1]))
        first = at + 1


def trace(t: Trajectory, decode: Decode, pad: int, images: Mapping[str, bytes], *, mode: str = MASK, name: str = "t") -> str:
    """The whole trajectory. `images`: PNGs by hash; one that is missing is told in words."""
    refs = iter(t.images)
    turns = []
    for n, turn in enumerate(t.turns):
        parts = list(pieces(t, turn, decode, pad, refs))
        turns.append(_turn(turn, parts, images, mode, f"{name}{n}"))
    how = "p" if mode == CHANCE else "m"
    return f'<div class="trace {how}">{legend(mode)}{"".join(turns)}</div>'


def legend(mode: str) -> str:
    if mode == CHANCE:
        shades = "".join(f'<li><span class="tok p{n}">abc</span> {words}</li>' for n, (_, words) in enumerate(SHADES))
        return f'<p class="note">Probability of each token that the model sampled:</p><ul class="legend">{shades}</ul>'
    return (
        '<p class="note">What a training step would learn from:</p><ul class="legend">'
        '<li><span class="tok on">abc</span> sampled by the model, in the loss</li>'
        '<li><span class="ctx">abc</span> context, masked</li></ul>'
    )


def label(turn: Turn) -> str:
    """Who speaks, and what became of a tool."""
    if turn.tool is not None:
        c = turn.tool
        asked = f" for “{c.query}”" if c.query else ""
        found = f"{c.results} result{'' if c.results == 1 else 's'}" if c.status == "ok" else c.status.replace("_", " ")
        more = [f"{c.seconds:.2f} s", *(["cached"] if c.cached else []), *(["incomplete"] if c.degraded else [])]
        return f"Tool: {verb(c.kind).lower()}{asked}, {found}, {', '.join(more)}"
    who = {"assistant": "Model", "prompt": "Prompt", "tool": "Tool"}[turn.role]
    return f"{who}: {turn.action.replace('_', ' ')}" if turn.action else who


def shade(chance: float) -> int:
    return next(n for n, (low, _) in enumerate(SHADES) if chance >= low)


def _turn(turn: Turn, parts: list[Piece], images: Mapping[str, bytes], mode: str, name: str) -> str:
    sampled = [p for p in parts if p.trained]
    facts = [f"{turn.end - turn.start} tokens"]
    if sampled:
        count = sum(len(p.ids) for p in sampled)
        least = min(sampled, key=lambda p: p.logprob)
        mean = sum(p.logprob for p in sampled) / count
        facts += [f"{count} in the loss", f"mean log-prob {mean:.3f}", f"least sure of “{least.text}” (p {least.chance:.2f})"]
    body = "".join(_piece(p, images, mode) for p in parts)
    return (
        f'<div class="said {esc(turn.role)}"><h3>{esc(label(turn))}</h3><p class="meta">{esc(", ".join(facts))}</p>'
        f'<div class="tokens">{body}</div>{_table(sampled, name) if sampled else ""}</div>'
    )


def _piece(p: Piece, images: Mapping[str, bytes], mode: str) -> str:
    if p.image is not None:
        data = images.get(p.image.sha256)
        said = f"picture of {p.image.tokens()} tokens"
        return img(data, said) if data is not None else f'<span class="nopicture">{said}</span>'
    if not p.trained:
        return f'<span class="ctx">{esc(p.text)}</span>'
    look = f"p{shade(p.chance)}" if mode == CHANCE else "on"
    title = f"p {p.chance:.3f}, log-prob {p.logprob:.3f}"
    return f'<span class="tok {look}" title="{title}">{esc(p.text)}</span>'


def _table(sampled: list[Piece], name: str) -> str:
    """The same as numbers, for who cannot see the colours."""
    rows = "".join(
        f"<tr><th scope='row'>{n}</th><td>{esc(p.text)}</td><td>{p.chance:.3f}</td><td>{p.logprob:.3f}</td></tr>"
        for n, p in enumerate(sampled[:ROWS], 1)
    )
    more = f'<p class="note">The first {ROWS} of {len(sampled)}.</p>' if len(sampled) > ROWS else ""
    return (
        f'<details class="table" id="{esc(name)}t"><summary>These tokens as a table</summary>{more}<div class="wide"><table>'
        "<thead><tr><th scope='col'>#</th><th scope='col'>token</th><th scope='col'>probability</th>"
        f"<th scope='col'>log-prob</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
