"""Where markup of ours goes on a Gradio page, and how events behave that nobody outside may call."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.escape import block

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def html(markup: str = "", name: str = "", *, elem_id: str | None = None) -> gr.Markdown:
    """A place for markup of ours. Never gr.HTML: it evaluates a template, for which a browser would have to allow `eval`, and
    takes what it gets as it is; gr.Markdown's sanitiser reads it a second time."""
    return gr.Markdown(block(markup, name), latex_delimiters=[], elem_id=elem_id, container=False)


def session(request: gr.Request) -> str:
    return str(request.session_hash)
