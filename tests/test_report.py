"""The report of a small made-up run: complete, self-contained, and unmoved by hostile text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path

import pytest
from report_fixtures import Page, make_run

from megatron_mmsr1 import config
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.eval.results import EvalResult, save_all
from megatron_mmsr1.report import report
from megatron_mmsr1.rollout.dump import read_dump, write_dump
from megatron_mmsr1.run import starts
from megatron_mmsr1.run.directory import open_run


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run, _ = make_run(tmp_path_factory.mktemp("report"))
    path = report(run)
    assert path == run / "report.html"
    return path.read_text()


def numbers(html: str) -> dict:
    """What the page draws."""
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])


def test_the_page_is_whole_and_asks_nothing_of_any_network(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"url\((?!#)|@import", html)
    # One script, the one whose hash the policy names; the numbers are no script to a browser.
    assert page.tags.count("script") == 2
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in unescape(html)
    assert "connect-src 'none'" in unescape(html)
    assert "fetch" not in script


def test_hostile_text_is_shown_as_text(html: str) -> None:
    page = Page(html)
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown
    assert "\\u202eevil" in shown
    assert "\u202e" not in html
    assert "tiny <run>" in shown
    assert "\\u202eevil g0" in shown  # a question, in the list of groups
    assert html.count("alert(1)") == html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert '<img src="http' not in html


def test_the_numbers_hold_no_markup_whatever_a_run_is_called(tmp_path: Path) -> None:
    """A category, and so a metric's name, comes from the data; a label from a path."""
    run, _ = make_run(tmp_path, name="<script>alert(1)<", steps=3)
    other, _ = make_run(tmp_path, name="b", steps=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bad = "</script><script>alert(2)</script>\u202e"
    (run / "metrics.jsonl").write_text("".join(json.dumps(r | {f"kind/{bad}/acc": 0.5}) + "\n" for r in rows))
    html = report([run, other]).read_text()
    assert Page(html).open == [] and Page(html).tags.count("script") == 2 and "\u202e" not in html
    data = numbers(html)
    assert data["lines"] == ["<script>alert(1)<", "b"]
    assert "</script><script>alert(2)<" in str(data) and "<" not in re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0]


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
    data = numbers(html)
    titles = [p["title"] for p in data["plots"]]
    for title in ("Reward and accuracy", "Share that calls a tool", "Calls a trajectory", "Loss", "Seconds a step"):
        assert title in titles
    (seconds,) = [p for p in data["plots"] if p["title"] == "Seconds a step"]
    assert {c["label"] for c in seconds["curves"]} == {"rollout", "training", "weight update"}
    (loss,) = [p for p in data["plots"] if p["title"] == "Loss"]
    assert data["axes"][loss["curves"][0]["x"]]["step"] == [0, 1, 2, 4, 5, 6, 7, 8, 9]  # step 3 was not finite


def test_what_happened_is_told(html: str) -> None:
    """Alarms, the life of a question, groups, and what training cost."""
    shown = " ".join(" ".join(Page(html).text).split())
    assert "logprob_gap , steps 4 to 7" in shown  # over after three steps without
    assert "worst: mean reward 0.55, step 7" in shown and "best: mean reward" in shown
    assert 'before ✗ answer "no"; answered; reward 0.1 after ✓ text search → answer "Vélo' in shown
    assert "calls in training's rollouts; $0.00 by the search server's count" in shown
    assert "the steps themselves 31 s" in shown  # ten of 2 + 1 + 0.1


def test_the_command_and_its_commit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cfg = make_run(tmp_path, steps=2)
    for argv in (["mmsr1", "train", "a b.yaml"], ["mmsr1", "train", "a b.yaml", "train.steps=2"]):
        monkeypatch.setattr("sys.argv", argv)
        with open_run(cfg, lambda _: None, "mmsr1 train"):
            pass
    found = starts.read(run)
    assert [s["command"] for s in found] == ["mmsr1 train 'a b.yaml'", "mmsr1 train 'a b.yaml' train.steps=2"]
    with (run / starts.FILE).open("a") as f:
        f.write('{"torn')
    shown = "".join(Page(report(run).read_text()).text)
    assert "mmsr1 train 'a b.yaml' train.steps=2 (" in shown and "; started 2 times, at first " in shown
    assert (found[0]["commit"] or "not of a checkout") in shown


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
