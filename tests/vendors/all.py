"""The vendors of this directory that are asked through `Upstream.call`, by name."""

from __future__ import annotations

from vendors import brave, jina, openai, retrieve, searxng, serpapi, serper, tavily

SPECS = {s.backend: s for s in (m.SPEC for m in (serpapi, serper, brave, tavily, searxng, retrieve, jina, openai))}
