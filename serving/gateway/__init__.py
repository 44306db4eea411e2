"""The OpenAI-compatible gateway: searched, sourced answers for any client of chat completions."""

from serving.gateway.app import create_app

__all__ = ["create_app"]
