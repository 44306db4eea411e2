"""Whatever a model or a page says is shown as words: nothing of it becomes markup, an address or a script."""

from __future__ import annotations

import pytest
from demo_fixtures import HOSTILE, Shown, answered, check_harmless, ended, png, source
from hypothesis import given
from hypothesis import strategies as st

from demo import render
from demo.escape import block, esc, host, link
from demo.steps import Exchange, Reply, Talk
from megatron_mmsr1.trajectory import ToolStatus
from serving.answering import Delta, SearchStarted

ANY = st.text() | st.sampled_from([h.format(host="evil.test") for h in HOSTILE])


def reply(words: str, url: str = "https://example.test/") -> Reply:
    """An answer in which everything that comes from elsewhere says `words`."""
    r = Reply()
    r.feed(Delta("reasoning", words, 1))
    r.feed(SearchStarted("image", "", 1))
    picture = source(1, "image", words, url)
    r.feed(ended("image", "", picture))
    r.feed(SearchStarted("text", words, 2))
    page = source(2, "text", words, url, words)
    r.feed(ended("text", words, page, round=2))
    r.feed(Delta("answer", words, 3))
    r.feed(answered(words, picture, page))
    r.end()
    return r


@given(ANY, ANY)
def test_nothing_from_elsewhere_becomes_markup(words: str, url: str) -> None:
    plain = check_harmless(block(render.exchange(Exchange("q", [], reply("words", "https://example.test/")), "q1")))
    shown = check_harmless(block(render.exchange(Exchange(words, [png()], reply(words, url)), "q1")))
    # The same elements as for plain words, but for links that lead nowhere and what is left out where it is empty.
    assert set(shown.tags) <= {*plain.tags, "img", "p", "strong"}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_are_shown_and_not_swallowed(words: str) -> None:
    shown = Shown.of(block(render.reply(reply(words), "q1"))).words
    assert esc("<answer>") == "&lt;answer&gt;"
    visible = [part for part in ("<img", "<script", "<answer>forged</answer>", "javascript:", "![") if part in words]
    assert all(part in shown for part in visible)


@given(st.text())
def test_escaping_is_one_line_and_reads_back(text: str) -> None:
    markup = esc(text)
    assert not set("<>\"'\n\r") & set(markup)
    kept = "".join(c for c in text if c.isascii() and (c.isprintable() or c == "\n"))
    assert Shown.of(f"<p>{esc(kept)}</p>").words == kept


def test_characters_that_would_turn_a_line_around_are_written_out() -> None:
    assert esc("a\u202eb\u200b\x00") == "a\\u202eb\\u200b\\u0000"


def test_a_line_end_in_our_own_markup_is_a_defect() -> None:
    with pytest.raises(ValueError, match="one line"):
        block("<p>a</p>\n\n![x](http://evil.test)")


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.test/x",
        "file:///etc/passwd",
        "http://[",
        "",
        "java\tscript:1",
        "http://a b/",
    ],
)
def test_only_web_addresses_become_links(url: str) -> None:
    assert "href" not in link(url, "title") and "title" in link(url, "title")


def test_a_link_tells_its_target_nothing() -> None:
    assert 'rel="noopener noreferrer nofollow"' in link('https://example.test/?a=1&b="2', "x")
    assert host("https://user@example.test:8443/x") == "example.test"


def test_steps_are_open_while_they_run_and_collapse_when_done() -> None:
    r = Reply()
    r.feed(Delta("reasoning", "look at it", 1))
    assert "look at it" in render.reply(r, "a") and "details" not in Shown.of(render.reply(r, "a")).tags
    r.feed(SearchStarted("image", "", 1))
    assert "running" in render.reply(r, "a") and render.status(r) == "Searching by the picture…"
    r.feed(ended("image", "", source(1, "image", "bimo")))
    running = Shown.of(render.reply(r, "a"))
    assert ("details", "open", "") in running.attributes and "bimo" in running.words
    assert "1 result · 0.12 s · cached · incomplete" in running.words
    r.feed(answered("rari", source(1, "image", "bimo")))
    done = Shown.of(render.reply(r, "a"))
    assert done.attributes.index(("details", "class", "work")) >= 0 and "1 search" in done.words
    assert ("details", "open", "") in done.attributes  # within the collapsed one, which has no `open`
    work = next(i for i, a in enumerate(done.attributes) if a == ("details", "class", "work"))
    assert done.attributes[work + 1] == ("details", "id", "aw") and done.attributes[work + 2][0] != "details"


@pytest.mark.parametrize("status", [s for s in ToolStatus if s is not ToolStatus.OK])
def test_every_failed_search_says_so_in_words(status: ToolStatus) -> None:
    r = Reply()
    r.feed(SearchStarted("text", "q", 1))
    r.feed(ended("text", "q", status=status))
    shown = Shown.of(render.reply(r, "a"))
    assert "0 results" not in shown.words and ("span", "class", "meta bad") in shown.attributes


def test_an_answer_that_failed_or_was_stopped_says_why() -> None:
    failed, stopped = Reply(), Reply()
    failed.feed(answered("", error="the engine is gone"))
    stopped.feed(Delta("answer", "half", 1))
    stopped.end()
    assert "the engine is gone" in render.reply(failed, "a") and not failed.running
    assert "Stopped." in render.reply(stopped, "a") and "half" in render.reply(stopped, "a")
    assert render.status(stopped) == "Stopped."


def test_a_picture_that_cannot_be_read_is_told_in_words() -> None:
    e = Exchange("q", [b"no picture"])
    assert "unreadable picture" in render.asked(e) and "img" not in Shown.of(render.asked(e)).tags


def test_a_follow_up_keeps_answers_and_pictures_and_leaves_out_what_was_never_answered() -> None:
    first, lost, now = Exchange("one", [png()]), Exchange("two", []), Exchange("three", [])
    first.reply.feed(answered("rari"))
    lost.reply.end()
    chat = Talk([first, lost, now]).chat()
    assert [(q.text, len(q.images), q.answer) for q in chat.questions] == [("one", 1, "rari"), ("three", 0, None)]
