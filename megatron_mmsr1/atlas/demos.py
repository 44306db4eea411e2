"""Demonstrations for the cold start: how to use each tool, how to copy from what it finds, what the known entities are.

*When* to search is left to GRPO: most demonstrations choose their tools at random. But from purely random ones the first
token learns to ignore the question, and GRPO can only move one global bias, to always or to never. So the last part follows
the right tools with probability `tilt`, which leaves every question's first token its own slope to climb.

Rows of four sorts, all as trajectories that `Trajectory.check` accepts:
demo     a whole conversation, as the rollout would have recorded it
copy     random tokens, then the same again: induction heads come from these, mixed in from the start
facts    one text result with several facts, several answers (dense copying)
picture  one picture, several answers (dense seeing)
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.atlas import turns
from megatron_mmsr1.atlas.demo_options import DemoOptions, parse_options
from megatron_mmsr1.atlas.gallery import Gallery
from megatron_mmsr1.atlas.names import SYLLABLES
from megatron_mmsr1.atlas.pages import fact_sentence
from megatron_mmsr1.atlas.questions import PHRASINGS, TOOLS, ask, attributes
from megatron_mmsr1.atlas.record import Recorder
from megatron_mmsr1.atlas.simulation import Simulation, Simulator
from megatron_mmsr1.atlas.spec import KINDS
from megatron_mmsr1.atlas.tokenizer import TAGS, words
from megatron_mmsr1.atlas.turns import ANSWER, CROP, IMAGE, TEXT
from megatron_mmsr1.atlas.world import ATTRIBUTES
from megatron_mmsr1.protocol import IM_END, IM_START, Prompts, TextHit, data, first_message, text, text_observation
from megatron_mmsr1.trajectory import Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.data.images import ImageStore


MOST_TOOLS = 2  # three rounds, the last of which answers


class Demonstrations:
    """`self[i]` is a pure function of (options, seed, i): any rank can make any part, and a resumed run goes on where it was.

    `images` gets the PNG of every picture that a returned trajectory refers to.
    """

    def __init__(self, options: DemoOptions, tokenizer: Any, images: ImageStore, seed: int) -> None:
        self.options, self._tokenizer, self._seed = options, tokenizer, seed
        self._simulator = Simulator(options.spec, Gallery(options.spec, options.pictures, seed), options.long_summaries)
        self._prompts = Prompts.load(options.prompts)
        self._images = images
        ids = tokenizer.convert_tokens_to_ids
        self._syllables = ids(list(SYLLABLES))
        self._pairs = ids([f"{n:02d}" for n in range(100)])
        self._words = [*ids(list(TAGS)), *(i for w in words() for i in tokenizer.encode(w, add_special_tokens=False))]

    def __len__(self) -> int:
        return self.options.examples

    def __getitem__(self, index: int) -> Trajectory:
        o, rng = self.options, random.Random(f"atlas/demo/{self._seed}/{index}")
        progress = index / len(self)
        out = Recorder(self._tokenizer, self._images, f"demo-{index}", o.answer_weight)
        if rng.random() < (o.copy_share if progress < o.copy_until else o.copy_later):
            return self._copy(rng, out)
        row = rng.random()
        if row < o.picture_share:
            return self._picture(rng, out)
        if row < o.picture_share + o.facts_share:
            return self._facts(rng, out)
        kind = rng.choices(KINDS, [o.mix[k] for k in KINDS])[0]
        tilted = progress >= o.tilt_from and rng.random() < o.tilt
        return self._demo(self._simulator.draw(rng, kind), out, TOOLS[kind] + ANSWER if tilted else None)

    def demo(self, rng: random.Random, kind: str, *, tilted: bool) -> Trajectory:
        """One conversation, outside the schedule: for tests, and to look at."""
        out = Recorder(self._tokenizer, self._images, "demo", self.options.answer_weight)
        return self._demo(self._simulator.draw(rng, kind), out, TOOLS[kind] + ANSWER if tilted else None)

    def _demo(self, e: Simulation, out: Recorder, tools: str | None) -> Trajectory:
        q, failures = e.question, self.options.failures
        out.context("prompt", first_message(self._prompts, q.text, 1), [e.shown.image.png])
        used = ""
        while True:
            action = tools[len(used)] if tools else self._action(e, used)
            if action == ANSWER:
                # Not found is said, and learnt, at the weight of any other token.
                out.answer(q.gold if e.fact_known else turns.UNKNOWN, known=e.fact_known)
                return out.finish(q, row="demo", used=used)
            used += action
            if action == CROP:
                corner, part = e.crop()
                out.call(turns.crop(corner), "crop")
                out.crop_result(part.png, q, self._prompts)
                continue
            fails = e.rng.random() < failures
            empty = fails and e.rng.random() < 0.5
            if action == IMAGE:
                out.call(turns.image_search(), "image_search")
                hits = [] if fails else e.image_hits()
                out.image_result(hits, q, self._prompts, failed=fails and not empty)
            else:
                query = e.query
                out.call(turns.text_search(query), "text_search")
                hits = [] if fails else e.text_hits()
                out.text_result(query, hits, q, self._prompts, failed=fails and not empty)

    def _action(self, e: Simulation, used: str) -> str:
        """At random, but at most two tools, none twice, and none after the needed fact was found."""
        tools = dict(zip((ANSWER, IMAGE, TEXT, CROP), self.options.first, strict=True))
        if not used:
            return e.rng.choices(list(tools), list(tools.values()))[0]
        left = [tool for tool in (IMAGE, TEXT, CROP) if tool not in used and tools[tool] > 0]
        if e.fact_known or not left or len(used) == MOST_TOOLS or e.rng.random() < 0.5:
            return ANSWER
        return e.rng.choice(left)

    def _copy(self, rng: random.Random, out: Recorder) -> Trajectory:
        ids = []
        for _ in range(rng.randint(3, 16)):
            turn = rng.random()
            ids.append(rng.choice(self._syllables if turn < 0.4 else self._pairs if turn < 0.7 else self._words))
        out.ids("prompt", [*ids, *self._tokenizer.encode("\n", add_special_tokens=False)])
        out.ids("assistant", ids)
        return out.finish(None, row="copy")

    def _picture(self, rng: random.Random, out: Recorder) -> Trajectory:
        e = self._simulator.draw(rng, "picture")
        image = [e.shown.image.png]
        for attribute in rng.sample(attributes("picture"), 3):
            q = ask(e.entity, "picture", attribute, rng.randrange(len(PHRASINGS[attribute])))
            message = first_message(self._prompts, q.text, len(image))
            out.dense(message, image, q.gold)
            image = []
        return out.finish(None, row="picture")

    def _facts(self, rng: random.Random, out: Recorder) -> Trajectory:
        places = self._simulator.places(rng, 2)
        asked, hits = [], []
        for e in places:
            told = rng.sample(ATTRIBUTES, rng.randint(1, 3))
            asked += [ask(e, "text", a, rng.randrange(len(PHRASINGS[a]))) for a in told]
            hits.append(TextHit(e.url, " ".join(fact_sentence(e.name, a, e.facts[a]) for a in told), e.name))
        rng.shuffle(asked)
        head = [text(f"{IM_START}user\nSearched results: <information>"), *text_observation(hits), text("</information>\n")]
        for q in asked:
            ask_it = [data(f" {q.text}"), text(f"{IM_END}\n{IM_START}assistant\n")]
            out.dense([*head, *ask_it], [], q.gold)
            head = [text(f"{IM_START}user\n")]
        return out.finish(None, row="facts")


def demonstrations(
    options: DemoOptions | Mapping[str, Any],
    tokenizer: Any,
    images: ImageStore,
    seed: int = 0,
    *,
    start: int = 0,
    stride: int = 1,
) -> Iterator[Trajectory]:
    """Demonstrations number start, start + stride, … to the end of the schedule. Raises UsageError for an unknown option."""
    if not isinstance(options, DemoOptions):
        options = parse_options(options)
    source = Demonstrations(options, tokenizer, images, seed)
    return (source[i] for i in range(start, len(source), stride))
