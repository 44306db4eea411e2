"""The page of tabs, and its place in a FastAPI app."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.responses import FileResponse, Response

from demo import atlas, chat_tab, compare_tab, replay_tab, theme, trace_tab
from demo.atlas import Example
from demo.escape import esc
from demo.live import Live
from demo.place import html, session
from demo.security import HEADERS, Guard, policy
from serving.answering import Answerer
from serving.settings import ServeConfig

SCRIPT_PATH = "/demo/app.js"
KEEP_S = 3600  # uploaded files that nobody asked about


def mount_page(app: FastAPI, cfg: ServeConfig, answerer: Answerer, *, path: str, examples: Sequence[Example] | None) -> FastAPI:
    """See `demo.app.mount`."""
    if examples is None:
        examples = atlas.examples(cfg.search.corpus)
    live = Live(answerer, cfg.gateway.limits.concurrency)

    @app.get(SCRIPT_PATH, include_in_schema=False)
    def script() -> Response:
        headers = {**HEADERS, "content-security-policy": policy(), "cache-control": "no-cache"}
        return FileResponse(theme.SCRIPT, media_type="text/javascript", headers=headers)

    app.state.demo = live
    blocks = page(cfg, live, examples)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        theme=theme.theme(),
        css_paths=[theme.STYLE],
        head=f'<script src="{SCRIPT_PATH}" defer></script>',
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        footer_links=[],
        show_error=False,
        max_file_size=cfg.gateway.limits.image_bytes,
        favicon_path=str(theme.ICON) if path == "/" else None,
    )
    mounted: Any = next(r for r in reversed(app.routes) if getattr(r, "app", None) is not None)
    mounted.app = Guard(mounted.app)
    return app


def page(cfg: ServeConfig, live: Live, examples: Sequence[Example]) -> gr.Blocks:
    with gr.Blocks(title=f"{cfg.name} · search on demand", analytics_enabled=False, delete_cache=(KEEP_S, KEEP_S)) as blocks:
        html(_header(cfg), "top", elem_id="top")
        context = live.answerer.context
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat"):
                talk = chat_tab.draw(cfg, live, examples)
            with gr.Tab("Compare", id="compare"):
                compare_tab.draw(cfg, live, examples, talk)
            with gr.Tab("Trace", id="trace-tab") as tab:
                trace_tab.draw(context, tab, talk)
            with gr.Tab("Replay", id="replay") as tab:
                replay_tab.draw(cfg, context, tab)

        def leave(request: gr.Request) -> None:
            live.stop(session(request))

        blocks.unload(leave)
    blocks.queue(default_concurrency_limit=None, max_size=cfg.gateway.limits.queue or None, api_open=False)
    return blocks


def _header(cfg: ServeConfig) -> str:
    where = f"{cfg.search.text.backend} over a local corpus" if cfg.search.corpus else cfg.search.text.backend
    return (
        f'<h1><span class="logo"></span>{esc(cfg.name)}</h1>'
        f'<span class="chip">{esc(where)}</span><span class="chip">{esc(cfg.search.mode)}</span>'
        '<button type="button" id="theme-switch"><span class="sr">Switch between light and dark</span></button>'
    )
