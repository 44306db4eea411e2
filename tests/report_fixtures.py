"""A small made-up run for the report's tests, by the writers of a real one; hostile text; and what a page of it holds."""

from __future__ import annotations

import io
import random
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.eval.results import EvalResult, save_all
from megatron_mmsr1.rollout.dump import write_dump
from megatron_mmsr1.run.logs import RunLog
from megatron_mmsr1.run.search_watch import SearchWatch
from megatron_mmsr1.run.step_log import StepLog
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


def make_run(root: Path, *, name: str = "run", seed: int = 0, steps: int = 10) -> tuple[Path, RunConfig]:
    """A finished run of `steps` steps with two groups of four rollouts each, evaluated before and after."""
    run = root / name
    (run / "model").mkdir(parents=True)
    tok = byte_tokenizer()
    tok.save(str(run / "model" / "tokenizer.json"))
    raw = {"model": {"path": "model"}, "name": "tiny <run>", "output": str(run), "seed": seed, "train": {"steps": steps}}
    cfg = config.parse(raw | {"logging": {"tensorboard": False}})
    (run / "config.yaml").write_text(config.dump(cfg))
    store = ImageStore(run / "images")
    after = []
    for n in range(24):
        kind, searching = (("known", ""), ("picture", ""), ("text", "Vélo <b>東京</b>"), ("both", "x"))[n % 4]
        after.append(conversation(tok, store, n, kind, f"Vélo {n} 東京", search=searching, right=n % 5 > 0))
    before = [conversation(tok, store, n, ("known", "picture", "text", "both")[n % 4], "no", right=False) for n in range(24)]
    write_dump(run / "rollouts", "eval_before", before, {})
    write_dump(run / "rollouts", "eval_after", after, {})
    EvalResult.from_trajectories("before", before, cfg.protocol, weights=0).save(run / "eval" / "before.json")
    EvalResult.from_trajectories("after", after, cfg.protocol, weights=steps).save(run / "eval" / "after.json")
    save_all([EvalResult.from_trajectories("oracle", after, cfg.protocol)], run / "eval" / "policies.json")
    write_steps(run, cfg, range(steps))
    return run, cfg


def write_steps(run: Path, cfg: RunConfig, steps: range) -> None:
    """Steps of a life of the run that resumes at the first of them: dumps and rows of metrics, with hostile answers. Whatever
    the seed, a run's rewards rise."""
    tok, store = byte_tokenizer(), ImageStore(run / "images")
    log = RunLog(run, cfg, resume_step=steps.start)
    step_log = StepLog(cfg, log, SearchWatch(None, cfg, log.warn, log.info), skipped_rows=0)
    for step in steps:
        draw = random.Random(f"{cfg.seed}/{step}")
        made: list[Trajectory] = []
        for i in range(8):
            right = draw.random() < 0.2 + 0.06 * step
            t = conversation(tok, store, i, "text", HOSTILE if i % 2 else "no", search="x" if right else "", right=right)
            t.prompt_id = t.group_id = f"g{i // 4}"
            t.question = f"{HOSTILE} {t.group_id}"
            made.append(t)
        write_dump(run / "rollouts", step, made, {})
        loss = float("nan") if step == 3 else 1 / (step + 1)  # what the file has as null
        metrics = {"loss": loss, "train_seconds": 1.0, "logprob_diff_mean": 0.2 if step in (4, 5) else 0.0}
        step_log.write(step, metrics, made, trained=8, seconds={"rollout": 2.0, "sync": 0.1}, generated=True, shown=made)
    log.close()


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
