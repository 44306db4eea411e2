"""The app: mounted into a FastAPI app, with `serving.answering` behind it. Nothing in it asks any other host for anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from demo.atlas import Example
    from serving.answering import Answerer
    from serving.settings import ServeConfig


def mount(
    app: FastAPI, cfg: ServeConfig, answerer: Answerer, *, path: str = "/", examples: Sequence[Example] | None = None
) -> FastAPI:
    """Add the app at `path`, behind every route that `app` has by now. `examples`: default, those of an Atlas corpus.

    `answerer` must belong to the event loop that will serve `app`.
    """
    # Read by Gradio when it is imported, which is why that happens in here.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from demo.page import mount_page

    return mount_page(app, cfg, answerer, path=path, examples=examples)
