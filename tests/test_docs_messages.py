"""Messages that the pages quote are the code's, every warning is explained, and settings that the pages name exist."""

from __future__ import annotations

import re

import pytest
from doc_messages import ROOT, quoted, said, templates, warnings
from pydantic import BaseModel

from megatron_mmsr1.config import RunConfig, parse
from megatron_mmsr1.run.alarms import ALARMS

pytestmark = pytest.mark.long

PAGES = ("operations.md", "troubleshooting.md")


def pattern(quote: str) -> re.Pattern[str]:
    """What is filled in may be something else in the code, or, in a shell script, a variable."""
    return re.compile(".{0,80}?".join(re.escape(part) for part in quote.split("…")))


@pytest.mark.parametrize(("page", "quote"), [(p, q) for p in PAGES for q in quoted(p) if " " in q])
def test_a_quoted_message_is_one_of_the_code_s(page: str, quote: str) -> None:
    assert len(quote.replace("…", "").strip()) >= 8, "too short to find"
    assert pattern(quote).search(said()), f"docs/{page} quotes a message that nothing says any more"


def test_the_pages_quote_messages() -> None:
    assert len([q for p in PAGES for q in quoted(p) if " " in q]) > 45
    assert not pattern("a message that … never says").search(said())


def test_every_warning_is_explained() -> None:
    explained = [pattern(q) for q in quoted("operations.md")]
    left = [w for w in warnings() if not any(p.search(w) for p in explained)]
    assert len(warnings()) > 10 and not left, "say in docs/operations.md what to do about it"


def test_every_alarm_is_explained() -> None:
    """Its message and what to do, in a row that names its metric."""
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \(`(alarm/\w+)`\) \| (.+) \|$", text, re.MULTILINE)
    assert {metric for _, metric, _ in rows} == {a.metric for a in ALARMS}
    source = "\n".join(templates(ROOT / "megatron_mmsr1" / "run" / "alarms.py"))
    for quote, _, what in rows:
        assert pattern(quote).search(source) and len(what) > 60


def exists(name: str) -> bool:
    """Whether a run's config has this key; below `engine` and `reward`, in the part that is there by default."""
    at: object = parse({"model": {"path": "m"}})
    for key in name.split("."):
        if isinstance(at, dict):
            return True  # a native field of SGLang or of the model's provider
        if not isinstance(at, BaseModel) or key not in type(at).model_fields:
            return False
        at = getattr(at, key)
    return True


@pytest.mark.parametrize(
    "page", ["migrating.md", "quickstart.md", "operations.md", "troubleshooting.md", "security.md", "recipes.md"]
)
def test_the_settings_that_a_page_names_exist(page: str) -> None:
    sections = "|".join(RunConfig.model_fields)
    text = (ROOT / "docs" / page).read_text()
    if page == "migrating.md":  # the first cell is the other trainer's
        text = "\n".join(line.split("|", 2)[2] for line in text.splitlines() if line.startswith("| "))
    named = {
        n for n in re.findall(rf"`((?:{sections})\.[a-z_.]+)[`:=]", text) if not n.endswith((".py", ".json", ".yaml", ".md"))
    }
    assert named and not {n for n in named if not exists(n)}
