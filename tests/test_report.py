"""The report of a small made-up run: complete, self-contained, and unmoved by hostile text."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.results import EvalResult, save_all
from megatron_mmsr1.report import report
from megatron_mmsr1.report.plots import smoothed
from megatron_mmsr1.rollout.dump import read_dump, write_dump
from megatron_mmsr1.trajectory import ImageRef, Status, ToolCall, ToolStatus, Trajectory

PAD, SPECIAL = "<|image_pad|>", ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
HOSTILE = '</pre></div><script>alert(1)</script><img src="http://evil.test/x.png" onerror="alert(2)">\u202eevil'


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the special ones: whatever is decoded alone is half a character as soon as it is not ASCII."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    return tok


def png(colour: tuple[int, int, int], size: int = 56) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def conversation(
    tok: Tokenizer, store: ImageStore, n: int, kind: str, answer: str, *, search: str = "", right: bool = True
) -> Trajectory:
    """A question on a picture, perhaps one search, an answer."""
    pad = tok.token_to_id(PAD)

    def ids(text: str) -> list[int]:
        return [i for part in tok.encode(text).ids for i in ([pad] * 4 if part == pad else [part])]

    def image(colour: tuple[int, int, int], size: int = 56) -> ImageRef:
        return ImageRef(store.put(png(colour, size)), (1, 4, 4))

    t = Trajectory(
        f"q{n}", f"q{n}", 0, f"What is this? {kind} {n}", ["Vélo"], category="search_required" if search else "search_free"
    )
    t.extra["kind"] = kind
    t.append(
        "prompt",
        ids(f"<|im_start|>user\n<|vision_start|>{PAD}<|vision_end|>{t.question}"),
        t.question,
        images=[image((n * 9 % 255, 80, 160))],
    )
    if search:
        call = f"<reason>Unknown.</reason><text_search>{search}</text_search><|im_end|>"
        t.append(
            "assistant",
            ids(call),
            call,
            logprobs=[-0.5] * len(ids(call)),
            weight_versions=[7] * len(ids(call)),
            action="text_search",
        )
        found = f"1. {PAD} {HOSTILE}"
        tool = ToolCall("text", search, ToolStatus.OK, seconds=0.25, results=1)
        t.append("tool", ids(found), found, images=[image((200, n * 9 % 255, 10), 400)], tool=tool)
    said = f"<reason>I know.</reason><answer>{answer}</answer><|im_end|>"
    t.append(
        "assistant", ids(said), said, logprobs=[-0.1] * len(ids(said)), weight_versions=[7] * len(ids(said)), action="answer"
    )
    t.status, t.reward = Status.ANSWERED, 1.0 if right else 0.1
    t.reward_parts = {"acc": float(right), "format": 1.0, "searches": float(bool(search))}
    return t


def make_run(root: Path) -> tuple[Path, RunConfig]:
    run = root / "run"
    (run / "model").mkdir(parents=True)
    tok = byte_tokenizer()
    tok.save(str(run / "model" / "tokenizer.json"))
    cfg = config.parse({"model": {"path": str(run / "model")}, "name": "tiny <run>", "output": str(run)})
    (run / "config.yaml").write_text(config.dump(cfg))
    store = ImageStore(run / "images")
    after = []
    for n in range(24):
        kind, searching = (("known", ""), ("picture", ""), ("text", "Vélo <b>東京</b>"), ("both", "x"))[n % 4]
        after.append(conversation(tok, store, n, kind, f"Vélo {n} 東京", search=searching, right=n % 5 > 0))
    before = [conversation(tok, store, n, ("known", "picture", "text", "both")[n % 4], "no", right=False) for n in range(24)]
    write_dump(run / "rollouts", "eval_before", before, {})
    write_dump(run / "rollouts", "eval_after", after, {})
    EvalResult.from_trajectories("before", before, cfg.protocol).save(run / "eval" / "before.json")
    EvalResult.from_trajectories("after", after, cfg.protocol).save(run / "eval" / "after.json")
    save_all([EvalResult.from_trajectories("oracle", after, cfg.protocol)], run / "eval" / "policies.json")
    rows: list[dict[str, float | None]] = [
        {"step": s, "loss": 1 / (s + 1), "reward/mean": s / 10, "search/share": 0.5, "kind/both/search_share": s / 10}
        | {"seconds/rollout": 2.0, "seconds/train": 1.0, "seconds/sync": 0.1}
        for s in range(10)
    ]
    rows[3]["loss"] = None  # what a NaN is written as
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return run, cfg


class Page(HTMLParser):
    """Collects what a browser would load or run, and checks that tags nest."""

    VOID = ("meta", "img", "br", "path", "use")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run, _ = make_run(tmp_path_factory.mktemp("report"))
    path = report(run)
    assert path == run / "report.html"
    return path.read_text()


def test_the_page_is_whole_and_asks_nothing_of_any_network(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!#)|@import", html)


def test_hostile_text_is_shown_as_text(html: str) -> None:
    page = Page(html)
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown
    assert "\\u202eevil" in shown
    assert "\u202e" not in html
    assert "tiny <run>" in shown


def test_ten_conversations_of_every_kind_with_their_pictures(html: str) -> None:
    page = Page(html)
    assert page.tags.count("article") == 10
    shown = "".join(page.text)
    for kind in ("known", "picture", "text", "both"):
        assert f"What is this? {kind}" in shown
    searching = html.count('class="turn tool"')
    assert page.tags.count("img") == 10 + searching  # the question's, and one in each observation
    assert searching >= 2
    assert "Vélo" in shown and "東京" in shown and "\ufffd" not in shown
    assert 'text search for "Vélo <b>東京</b>": 1 result, 0.25 s' in shown
    assert 'Before training: answer "no"; answered; reward 0.1' in shown


def test_only_sampled_tokens_are_marked(html: str) -> None:
    marked = re.findall(r'<span class="trained" title="([^"]*)">(.*?)</span>', html, re.DOTALL)
    text = "".join(t for _, t in marked)
    assert "&lt;reason&gt;I know.&lt;/reason&gt;" in text
    assert "What is this" not in text and "evil" not in text
    # exp(-0.1) for one byte; "é" is two bytes with exp(-0.2), one piece.
    assert ("p 0.905, weights 7", "V") in marked
    assert ("p 0.819, weights 7", "é") in marked


def test_table_headline_and_plots(html: str) -> None:
    page = Page(html)
    shown = "".join(page.text)
    # Of 24 answers those with n % 5 == 0 are wrong (0, 5, 10, 15, 20): 19/24 = 79.2 %, from none.
    assert "Accuracy on 24 held-out questions: 0.0% before, 79.2% after (+79.2 points)." in shown
    for name in ("before", "after", "oracle", "searching", "calls / allowed", "search-required"):
        assert name in shown
    assert page.tags.count("svg") == 4  # rewards, searches, loss, seconds: what these metrics hold
    seconds = html[html.index("Seconds a step") :]
    assert [seconds.index(f">{part}</text>") > 0 for part in ("rollout", "train", "sync")] == [True] * 3
    assert "currentColor" in html and "#010203" not in html
    assert not any("<style" in svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL))


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path: Path) -> None:
    cfg = config.parse({"model": {"path": "nowhere"}, "output": str(tmp_path)})
    (tmp_path / "config.yaml").write_text(config.dump(cfg))
    shown = "".join(Page(report(tmp_path).read_text()).text)
    assert "has not finished a step" in shown and "no evaluation" in shown and "no rollouts" in shown


def test_without_a_tokenizer_turns_are_shown_whole(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    (run / "model" / "tokenizer.json").unlink()
    page = Page(report(run).read_text())
    assert page.tags.count("article") == 10
    assert "no tokenizer.json" in "".join(page.text)
    assert page.tags.count("img") >= 10


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        report(tmp_path)


def test_smoothing_keeps_length_and_constants() -> None:
    assert smoothed([2.0] * 7) == [2.0] * 7
    assert smoothed([0, 3, 6], 3) == [1.5, 3.0, 4.5]  # the ends average two values
    assert smoothed([]) == []


def test_the_pages_of_a_run_name_one_snapshot(tmp_path: Path) -> None:
    """Every evaluation keeps the id of its own moment; report and model card both name that of the run's newest one, whoever
    evaluated with another server later."""
    from megatron_mmsr1.publish import model_card
    from megatron_mmsr1.report.gather import gather

    run, cfg = make_run(tmp_path)
    write_dump(run / "rollouts", 9, [], {"search": {"mode": "live", "id": "9" * 16, "backends": {}}})
    done, _ = read_dump(run / "rollouts", "eval_after")

    def evaluated(name: str, id: str) -> EvalResult:
        return EvalResult.from_trajectories(name, done, cfg.protocol, search={"mode": "live", "id": id, "backends": {}})

    def named() -> tuple[str, str]:
        model_card.write(run, run / "model", step=10)
        card = (run / "model" / "README.md").read_text()
        return re.findall(r"snapshot (\w+)", gather(run).searched)[0], re.findall(r"snapshot `(\w+)`", card)[0]

    assert named() == ("9" * 16, "9" * 16)  # nobody said for an evaluation
    evaluated("before", "a" * 16).save(run / "eval" / "before.json")
    evaluated("after", "b" * 16).save(run / "eval" / "after.json")
    assert named() == ("b" * 16, "b" * 16)
    save_all([evaluated("oracle", "c" * 16)], run / "eval" / "policies.json")
    evaluated("model", "d" * 16).save(run / "eval" / "model.json")
    assert named() == ("b" * 16, "b" * 16)
