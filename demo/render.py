"""Conversations as HTML. Every word that is not ours goes through `esc`, every address through `link`."""

from __future__ import annotations

from collections.abc import Sequence

from demo.escape import esc, host, link
from demo.pictures import LARGE, img
from demo.steps import Exchange, Lookup, Reply, Talk, Thought, outcome_words
from serving.answering import Source

SNIPPET = 320  # characters of a source's text on its card


def talk(t: Talk, *, upto: int | None = None) -> str:
    """The conversation; its first `upto` exchanges."""
    return "".join(exchange(e, f"q{n}") for n, e in enumerate(t.exchanges[:upto], 1))


def exchange(e: Exchange, name: str) -> str:
    return f'<div class="turn" id="{esc(name)}">{asked(e)}{reply(e.reply, name)}</div>'


def asked(e: Exchange) -> str:
    shown = "".join(img(data, "picture of your question", LARGE) for data in e.images)
    pictures = f'<div class="pictures">{shown}</div>' if shown else ""
    words = f"<p>{esc(e.question)}</p>" if e.question else ""
    return f'<div class="ask"><span class="sr">You asked:</span>{pictures}{words}</div>'


def reply(r: Reply, name: str) -> str:
    """Steps, answer and sources. `name` makes the ids, by which the page remembers what the reader opened."""
    steps = "".join(f"<li>{_step(s, f'{name}s{n}', r.running)}</li>" for n, s in enumerate(r.steps))
    parts = ['<div class="reply"><span class="sr">Reply:</span>']
    if steps and r.running:
        parts.append(f'<ol class="steps">{steps}</ol>')
    elif steps:
        parts.append(
            f'<details class="work" id="{name}w"><summary><span class="mark done"></span>{_work(r)}</summary>'
            f'<ol class="steps">{steps}</ol></details>'
        )
    if r.text:
        parts.append(f'<div class="answer{" partial" if r.running or r.stopped else ""}">{esc(r.text)}</div>')
    elif r.running and not _searching(r):
        parts.append(f'<p class="wait"><span class="mark busy"></span>{_doing(r)}</p>')
    if r.failed:
        parts.append(f'<p class="trouble"><strong>No answer.</strong> {esc(r.failed)}</p>')
    if r.stopped:
        parts.append('<p class="note">Stopped.</p>')
    if r.outcome is not None:
        parts += [_notes(r), _sources(r.outcome.sources, name)]
    return "".join([*parts, "</div>"])


def status(r: Reply) -> str:
    """The state in one plain sentence, for the status line that screen readers speak."""
    if r.running:
        return _doing(r)
    if r.failed:
        return f"No answer: {r.failed}"
    if r.stopped:
        return "Stopped."
    return f"Answer: {r.text}"


def _searching(r: Reply) -> bool:
    return bool(r.steps) and isinstance(r.steps[-1], Lookup) and r.steps[-1].ended is None


def _doing(r: Reply) -> str:
    last = r.steps[-1] if r.steps else None
    if isinstance(last, Lookup) and last.ended is None:
        doing = {"image": "Searching by the picture…", "text": "Searching the text index…"}
        return doing.get(last.kind, f"{verb(last.kind)}…")
    if r.text:
        return "Answering…"
    return "Reading what was found…" if isinstance(last, Lookup) else "Thinking…"


def _work(r: Reply) -> str:
    n = len(r.lookups)
    searches = {0: "No search", 1: "1 search"}.get(n, f"{n} searches")
    # The words first: what the line says stays readable where the pictures do not fit.
    took = f'<span class="meta">{r.outcome.seconds:.2f} s</span>' if r.outcome is not None else ""
    strip = "".join(f'<span class="chip {esc(s.kind)}">{_title(s)}</span>' for s in r.lookups)
    return f"<span>{searches}</span>{took}{strip}"


def _title(s: Lookup) -> str:
    return "picture" if s.kind == "image" else esc(s.query if s.kind == "text" else verb(s.kind))


def verb(kind: str) -> str:
    """What a tool of this kind does, as a person reads it."""
    return {"image": "Image search", "text": "Text search"}.get(kind, kind.replace("_", " ").capitalize())


def _step(s: Thought | Lookup, name: str, running: bool) -> str:
    if isinstance(s, Thought):
        return (
            f'<div class="thought"><span class="mark think"></span><span class="sr">Reason:</span>{esc(s.text.strip())}</div>'
        )
    query = f'<span class="query">{esc(s.query)}</span>' if s.query else ""
    if s.ended is None:
        meta = '<span class="meta">running…</span>'
        return f'<div class="lookup running"><span class="mark busy"></span><b>{esc(verb(s.kind))}</b>{query}{meta}</div>'
    good = "good" if s.ended.status == "ok" else "bad"
    words = outcome_words(s.ended)
    meta = f'<span class="meta {good}">{" · ".join(map(esc, words))}</span>'
    head = f'<summary><span class="mark {esc(s.kind)}"></span><b>{esc(verb(s.kind))}</b>{query}{meta}</summary>'
    return f'<details class="lookup" id="{esc(name)}" open>{head}{_found(s)}</details>'


def _found(s: Lookup) -> str:
    assert s.ended is not None
    detail = f'<p class="note">{esc(s.ended.detail)}</p>' if s.ended.detail else ""
    if any(x.image is not None for x in s.ended.sources):
        hits = "".join(f"<li>{img(x.image, x.title)}<span>{esc(x.title)}</span></li>" for x in s.ended.sources)
        return f'{detail}<ul class="thumbs">{hits}</ul>' if hits else detail
    hits = "".join(
        f'<li><span class="where">{esc(x.title or host(x.url))}</span><span class="what">{esc(x.text[:SNIPPET])}</span></li>'
        for x in s.ended.sources
    )
    return f'{detail}<ul class="hits">{hits}</ul>' if hits else detail


def _notes(r: Reply) -> str:
    a = r.outcome
    assert a is not None
    notes = []
    if a.forced:
        wanted = "wanted more searches than it may make" if r.lookups else "wanted to search, which it was not to"
        notes.append(f"The model {wanted}, and was made to answer.")
    if a.finish == "length" and a.text:
        notes.append("Cut off at the token limit.")
    return "".join(f'<p class="note">{n}</p>' for n in notes)


def _sources(sources: Sequence[Source], name: str) -> str:
    if not sources:
        return ""
    cards = "".join(f'<li class="card{" supports" if s.supports else ""}">{_card(s)}</li>' for s in sources)
    return f'<div class="sources"><h3 id="{name}h">Sources</h3><ul>{cards}</ul></div>'


def _card(s: Source) -> str:
    picture = img(s.image, "", 96) if s.image is not None else ""
    title = s.title or host(s.url) or "untitled"
    badge = '<span class="badge">has the answer</span>' if s.supports else ""
    text = f'<p class="snippet">{esc(_short(s.text))}</p>' if s.text else ""
    kind = verb(s.kind).lower()
    where = host(s.url) or "no address"
    return (
        f'{picture}<div><span class="n">{s.n}</span><b>{link(s.url, title)}</b>{badge}'
        f'<p class="where">{esc(where)} · {kind}</p>{text}</div>'
    )


def _short(text: str) -> str:
    return text if len(text) <= SNIPPET else text[:SNIPPET].rstrip() + "…"
