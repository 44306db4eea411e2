"""Writes a demonstration down as the rollout would: turns, masks, image runs, and the weights that only SFT has."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_mmsr1 import protocol
from megatron_mmsr1.atlas.questions import Question
from megatron_mmsr1.atlas.turns import ANSWER, REASON, spaced
from megatron_mmsr1.protocol import IM_END, IMAGE, ImageHit, Prompts, Segment, TextHit
from megatron_mmsr1.protocol.mmsearch import wrapped
from megatron_mmsr1.tools.crop import Crop
from megatron_mmsr1.trajectory import ImageRef, Status, ToolCall, ToolStatus, Trajectory, buffer, expand_pads

if TYPE_CHECKING:
    from megatron_mmsr1.data.images import ImageStore

PATCH = 14


class Recorder:
    """One trajectory in the making. Its log-probs are 0 and its weight versions UNSAMPLED: nothing sampled it."""

    def __init__(
        self,
        tokenizer: Any,
        images: ImageStore,
        prompt_id: str,
        answer_weight: float,
        data_source: str = "mmsearch_r1/atlas_demo",
    ) -> None:
        self._tokenizer, self._images, self._answer_weight = tokenizer, images, answer_weight
        self._pad = tokenizer.convert_tokens_to_ids(protocol.IMAGE_PAD)
        self._weights: list[float] = []
        self._t = Trajectory(prompt_id, prompt_id, 0, "", [], data_source=data_source)

    def context(self, role: str, message: Sequence[Segment], pngs: Sequence[bytes] = (), tool: ToolCall | None = None) -> None:
        """A message that is not trained on, with its canonical pictures."""
        refs = [ImageRef(self._images.put(p), _grid(p)) for p in pngs]
        ids = protocol.encode(self._tokenizer, message)
        ids = expand_pads(ids, self._pad, [r.tokens() for r in refs])
        self._weights += [0.0] * len(ids)
        shown = "".join("<image>" if s.kind == "image" else s.text for s in message)
        self._t.append(role, ids, shown, images=refs, tool=tool)

    def ids(self, role: str, ids: list[int]) -> None:
        """Bare tokens: those of an assistant are trained on."""
        sampled = role == "assistant"
        self._weights += [float(sampled)] * len(ids)
        self._t.append(role, ids, self._tokenizer.decode(ids), logprobs=[0.0] * len(ids) if sampled else None)

    def call(self, said: str, action: str) -> None:
        self._say([(said + IM_END, 1.0)], said, action)

    def answer(self, gold: str, *, known: bool) -> None:
        """Unlike the words around it, which every demonstration repeats, a right answer is weighted up."""
        head, body, tail = f"<reason>{REASON[ANSWER]}</reason><answer>", spaced(gold), "</answer>"
        weight = self._answer_weight if known else 1.0
        self._say([(head, 1.0), (body, weight), (tail + IM_END, 1.0)], head + body + tail, "answer")

    def dense(self, message: Sequence[Segment], pngs: Sequence[bytes], gold: str) -> None:
        """A question whose answer tag is already open: trains what to answer, not whether to."""
        opened = protocol.text(f"<reason>{REASON[ANSWER]}</reason><answer>")
        self.context("tool" if self._t.turns else "prompt", [*message, opened], pngs)
        said = f"{spaced(gold)}</answer>"
        self._say([(said, self._answer_weight), (IM_END, 1.0)], said, "answer")

    def image_result(self, hits: Sequence[ImageHit], q: Question, prompts: Prompts, *, failed: bool) -> None:
        call = ToolCall("image", "", _status(hits, failed), results=len(hits), backend="atlas")
        pngs = [h.image for h in hits if h.image is not None]
        self._result(call, protocol.image_observation(hits), pngs, q, prompts.after_image, failed)

    def text_result(self, query: str, hits: Sequence[TextHit], q: Question, prompts: Prompts, *, failed: bool) -> None:
        call = ToolCall("text", query, _status(hits, failed), results=len(hits), backend="atlas")
        self._result(call, protocol.text_observation(hits), [], q, prompts.after_text, failed)

    def crop_result(self, part: bytes, q: Question, prompts: Prompts) -> None:
        call = ToolCall(Crop.name, "", ToolStatus.OK, results=1, backend=Crop.name)
        message = wrapped(Crop.heading, [IMAGE], q.text, prompts.after_call(Crop.name))
        self.context("tool", message, [part], call)

    def finish(self, q: Question | None, **extra: Any) -> Trajectory:
        t = self._t
        t.loss_weights = buffer("loss_weights", self._weights)
        t.status = Status.ANSWERED
        t.extra = dict(extra)
        if q is not None:
            t.question, t.golden_answers, t.category = q.text, [q.gold], q.category
            t.extra |= q.extra()
        return t

    def _result(
        self, call: ToolCall, found: list[Segment], pngs: list[bytes], q: Question, follow_up: str, failed: bool
    ) -> None:
        message = protocol.failed_message(call.kind) if failed else protocol.tool_message(found, q.text, follow_up)
        self.context("tool", message, pngs, call)

    def _say(self, parts: list[tuple[str, float]], said: str, action: str) -> None:
        """The parts are cut at tags, which are tokens of their own, so their ids are those of the whole."""
        ids: list[int] = []
        for piece, weight in parts:
            new = self._tokenizer.encode(piece, add_special_tokens=False)
            ids += new
            self._weights += [weight] * len(new)
        self._t.append("assistant", ids, said, logprobs=[0.0] * len(ids), action=action)


def _grid(png: bytes) -> tuple[int, int, int]:
    """Patches of a canonical PNG, whose header gives width and height as two big-endian words."""
    width, height = struct.unpack_from(">II", png, 16)
    return 1, height // PATCH, width // PATCH


def _status(hits: Sequence[object], failed: bool) -> ToolStatus:
    return ToolStatus.UPSTREAM_ERROR if failed else ToolStatus.OK if hits else ToolStatus.EMPTY
