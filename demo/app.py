"""The app as a server mounts it: into a FastAPI app, with `serving.answering` behind it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_mmsr1.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from demo.atlas import Example
    from serving.answering import Answerer
    from serving.settings import ServeConfig


class DemoApp:
    """A `serving.launch.App`. Raises UsageError where Gradio is not installed."""

    def __init__(self) -> None:
        if importlib.util.find_spec("gradio") is None:
            raise UsageError("the app needs Gradio: pip install 'megatron-mmsr1[demo]'")

    def load(self) -> None:
        _settle()
        importlib.import_module("gradio")

    def mount(self, gateway: FastAPI, cfg: ServeConfig, answerer: Answerer) -> FastAPI:
        return mount(gateway, cfg, answerer)


def mount(
    app: FastAPI, cfg: ServeConfig, answerer: Answerer, *, path: str = "/", examples: Sequence[Example] | None = None
) -> FastAPI:
    """Add the app at `path`, behind every route that `app` has by now. `examples`: default, those of an Atlas corpus.

    `answerer` must belong to the event loop that will serve `app`.
    """
    _settle()
    from demo.page import mount_page

    return mount_page(app, cfg, answerer, path=path, examples=examples)


def _settle() -> None:
    """What Gradio reads when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
