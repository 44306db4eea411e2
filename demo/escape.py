"""Text of others on our page: escaped, in one line, and never a link to anything but http(s).

Everything that is shown goes through a gr.Markdown as one line of HTML. Markdown leaves a block of HTML alone up to the first
blank line, so a text without line ends has no place where Markdown could begin; Gradio's sanitiser then reads it once more.
"""

from __future__ import annotations

import html
from urllib.parse import urlsplit

from megatron_mmsr1.report.text import visible


def esc(text: str) -> str:
    """For an element's content or a quoted attribute. Line ends become character references."""
    return html.escape(visible(text.replace("\r\n", "\n").replace("\r", "\n"))).replace("\n", "&#10;").replace("\t", "&#9;")


def host(url: str) -> str:
    """The host to show for a link; "" for anything that is no http(s) address."""
    try:
        parts = urlsplit(url)
        name = parts.hostname or ""
    except ValueError:  # an address like http://[
        return ""
    return name if parts.scheme in ("http", "https") else ""


def link(url: str, text: str) -> str:
    """A link that tells its target nothing about us; the bare text where the address is not http(s)."""
    if not host(url) or visible(url) != url or any(c.isspace() for c in url):
        return f"<span>{esc(text)}</span>"
    return f'<a href="{esc(url)}" target="_blank" rel="noopener noreferrer nofollow">{esc(text)}</a>'


def block(markup: str, name: str = "") -> str:
    """Markup as the one HTML block of a gr.Markdown. ValueError for a line end, which only a defect of ours can bring."""
    if any(c in markup for c in "\n\r"):
        raise ValueError("markup for gr.Markdown must be one line")
    return f'<div class="mm {esc(name)}">{markup}</div>'
