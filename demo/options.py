"""What a person may choose for a question, and the question as the answerer wants it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from demo.steps import Exchange, Talk
from megatron_mmsr1.data.decode import ImageError, decode
from serving.answering import Ask
from serving.settings import ServeConfig

FREE, ALWAYS, OFF = "As the model decides", "Always", "Off"


def tool_names(cfg: ServeConfig) -> dict[str, str]:
    """The tools' names for a person -> their kinds."""
    return {"Image search": "image", "Text search": "text"} | {n.replace("_", " ").capitalize(): n for n in cfg.tools}


@dataclass(slots=True)
class Options:
    """The controls; `components` is their order as inputs of an event, `ask` takes their values in that order."""

    search: gr.Radio
    tools: gr.CheckboxGroup
    searches: gr.Slider
    temperature: gr.Slider

    @classmethod
    def draw(cls, cfg: ServeConfig) -> Options:
        extra = sum(getattr(s, "limit", 0) for s in cfg.tools.values())
        most = cfg.protocol.image_searches + cfg.protocol.text_searches + extra
        with gr.Accordion("Options", open=False, elem_id="options"), gr.Row():
            search = gr.Radio([FREE, ALWAYS, OFF], value=FREE, label="Search", elem_id="search-mode")
            tools = gr.CheckboxGroup(list(tool_names(cfg)), value=list(tool_names(cfg)), label="Tools")
            searches = gr.Slider(0, max(most, 1), value=most, step=1, label="Searches at most", buttons=[])
            temperature = gr.Slider(0, 1.5, value=cfg.temperature, step=0.1, label="Temperature (0: the likeliest)", buttons=[])
        return cls(search, tools, searches, temperature)

    @property
    def components(self) -> list[gr.components.Component]:
        return [self.search, self.tools, self.searches, self.temperature]


def ask(cfg: ServeConfig, talk: Talk, search: str, tools: list[str], searches: float, temperature: float) -> Ask:
    """An Ask from the controls' values. What a page sends is not trusted: unknown tools are dropped, numbers brought within
    their limits by the answerer."""
    wanted = tuple(t for name, t in tool_names(cfg).items() if name in tools)
    if search == OFF:
        wanted = ()
    most = max(0, int(searches))
    return Ask(
        talk.chat(),
        tools=wanted,
        max_searches=most,
        deadline_s=cfg.gateway.limits.deadline_s,
        require_search=search == ALWAYS and bool(wanted) and most > 0,
        temperature=min(max(0.0, float(temperature)), 2.0),
    )


def variants(cfg: ServeConfig, talk: Talk) -> dict[str, Ask]:
    """The same question three ways, greedy so that they differ by nothing else."""
    free = Ask(talk.chat(), deadline_s=cfg.gateway.limits.deadline_s, temperature=0.0)
    return {
        "With search": free,
        "Without search": replace(free, tools=()),
        "Search required": replace(free, require_search=True),
    }


def take(value: dict[str, Any] | None, talk: Talk, cfg: ServeConfig) -> Exchange:
    """What was typed and uploaded as a question; then the uploaded files are deleted. Raises gr.Error in words for the person,
    whose files stay where they are for the next try."""
    value = value or {}
    files = [Path(str(f)) for f in value.get("files") or []]
    limits = cfg.gateway.limits
    text = str(value.get("text") or "").strip()
    if not text:
        raise gr.Error("Write a question to go with it." if files else "Write a question first.", print_exception=False)
    if len(files) + talk.pictures > limits.images:
        raise gr.Error(f"A conversation may hold {limits.images} pictures: start a new one.", print_exception=False)
    try:
        if max((f.stat().st_size for f in files), default=0) > limits.image_bytes:
            raise gr.Error(f"A picture may have {limits.image_bytes / 1e6:g} MB at most.", print_exception=False)
        images = [f.read_bytes() for f in files]
    except FileNotFoundError:
        raise gr.Error("The picture is no longer here: upload it again.", print_exception=False) from None
    for data in images:
        check(data, limits.image_pixels)
    for f in files:
        f.unlink(missing_ok=True)
    return Exchange(text, images)


def check(data: bytes, pixels: int) -> None:
    """Raises gr.Error unless this is a picture of at most so many pixels."""
    try:
        image = decode(data)
    except ImageError as e:
        raise gr.Error(f"This file is no picture that can be read: {e}.", print_exception=False) from None
    if image.width * image.height > pixels:
        raise gr.Error(f"A picture may have {pixels / 1e6:g} megapixels at most.", print_exception=False)
