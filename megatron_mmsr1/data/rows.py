"""What a row of a parquet file says: veRL's columns, or open-r1's.

veRL: `prompt` [{role, content}], `images` [{bytes}], `reward_model` {ground_truth, candidate_answers}, and if there
`data_source`, `data_id`, `category`, `image_urls`, `extra_info`. open-r1: `image` {bytes}, `problem`, `solution` and if
there `original_question`, `original_answer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from megatron_mmsr1.data.decode import MAX_SOURCE_PIXELS, ImageError, decode
from megatron_mmsr1.data.resize import smart_resize
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict, is_list


@dataclass(slots=True)
class Prompt:
    """A question to the model. `images` are the bytes as the file has them (`images.canonicalize` takes them)."""

    prompt_id: str
    question: str
    images: list[bytes]
    golden_answers: list[str]
    category: str = ""  # search_free | search_required, where the data say so
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


class BadRow(UsageError):
    """One row cannot be used."""

    def __init__(self, path: Path, row: int, column: str, why: str) -> None:
        super().__init__(f"{path}, row {row}, column {column}: {why}")


def layout_of(path: Path, columns: Sequence[str]) -> Layout:
    """The layout that these columns have. UsageError if it is none that we know."""
    names = set(columns)
    for kind in (VerlLayout, OpenR1Layout):
        if set(kind.REQUIRED) <= names:
            return kind([c for c in kind.REQUIRED + kind.OPTIONAL if c in names])
    raise UsageError(
        f"{path} has columns {', '.join(columns)}: need {', '.join(VerlLayout.REQUIRED)} (veRL) "
        f"or {', '.join(OpenR1Layout.REQUIRED)} (open-r1)"
    )


def prompt_id(data_id: Any, path: Path, number: int) -> str:
    """What row `number` of `path` is called: its `data_id`, where it has one."""
    return _text(data_id) or f"{path.stem}:{number}"


class Layout:
    """How rows of one set of columns become prompts."""

    REQUIRED: tuple[str, ...] = ()
    OPTIONAL: tuple[str, ...] = ()

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns

    def prompt(self, row: dict[str, Any], path: Path, number: int) -> Prompt:
        """Row `number` of `path`. BadRow if anything that it needs is missing, of the wrong type or undecodable."""
        raise NotImplementedError


class VerlLayout(Layout):
    REQUIRED = ("prompt", "reward_model")
    OPTIONAL = ("images", "data_source", "data_id", "category", "image_urls", "extra_info")

    def prompt(self, row: dict[str, Any], path: Path, number: int) -> Prompt:
        def bad(column: str, why: str) -> NoReturn:
            raise BadRow(path, number, column, why)

        question = _user_text(row["prompt"])
        if not question:
            bad("prompt", "holds no text of a user")
        reward = row["reward_model"]
        if not is_dict(reward) or "ground_truth" not in reward:
            bad("reward_model", "has no ground_truth")
        try:
            candidates = _candidates(reward.get("candidate_answers"))
        except ValueError as e:
            bad("reward_model.candidate_answers", str(e))
        golds = _distinct([*_texts(reward["ground_truth"]), *candidates])
        if not golds:
            bad("reward_model.ground_truth", "holds no answer")
        extra = dict(row.get("extra_info") or {})
        if row.get("image_urls"):
            extra["image_urls"] = row["image_urls"]
        return Prompt(
            prompt_id=prompt_id(row.get("data_id"), path, number),
            question=question,
            images=_images(row.get("images"), "images", path, number),
            golden_answers=golds,
            category=_text(row.get("category")) or _text(extra.get("category")),
            data_source=_text(row.get("data_source")),
            extra=extra,
        )


class OpenR1Layout(Layout):
    REQUIRED = ("image", "problem", "solution")
    OPTIONAL = ("original_question", "original_answer", "data_source", "data_id", "category")

    def prompt(self, row: dict[str, Any], path: Path, number: int) -> Prompt:
        question = _text(row["problem"]).strip()
        if not question:
            raise BadRow(path, number, "problem", "is empty")
        # The solution thinks aloud and then answers; the original answer is the data set's own wording.
        solution = _text(row["solution"])
        answer = solution.rpartition("<answer>")[2].partition("</answer>")[0] if "<answer>" in solution else solution
        golds = _distinct([answer.strip(), _text(row.get("original_answer")).strip()])
        if not golds:
            raise BadRow(path, number, "solution", "holds no answer")
        return Prompt(
            prompt_id=prompt_id(row.get("data_id"), path, number),
            question=question,
            images=_images([row["image"]] if row["image"] else [], "image", path, number),
            golden_answers=golds,
            category=_text(row.get("category")),
            data_source=_text(row.get("data_source")),
            extra={"original_question": row["original_question"]} if row.get("original_question") else {},
        )


def _images(cells: Any, column: str, path: Path, number: int) -> list[bytes]:
    if cells is not None and not is_list(cells):
        raise BadRow(path, number, column, f"must be a list of images, not {type(cells).__name__}")
    out: list[bytes] = []
    for n, cell in enumerate(cells or []):
        data = cell.get("bytes") if is_dict(cell) else cell
        try:
            if not isinstance(data, bytes):
                raise ImageError("holds no bytes (a path or URL alone is not read)")
            smart_resize(*decode(data).size, factor=1, min_pixels=1, max_pixels=MAX_SOURCE_PIXELS)  # refuses slivers
        except ImageError as e:
            raise BadRow(path, number, column if column == "image" else f"{column}[{n}]", str(e)) from e
        out.append(data)
    return out


def _user_text(messages: Any) -> str:
    """The text of the last message of a user; its content may be a string or a list of typed parts."""
    if isinstance(messages, str):
        return messages.strip()
    for message in reversed(messages if is_list(messages) else []):
        if is_dict(message) and message.get("role") == "user":
            content = message.get("content")
            if is_list(content):
                content = "".join(_text(part.get("text")) for part in content if is_dict(part))
            return _text(content).strip()
    return ""


def _candidates(value: Any) -> list[str]:
    """A list, or a JSON string of one; None and "" are no candidates. Raises ValueError for anything else."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as e:
            raise ValueError(f"is not a JSON list: {e}") from e
        if not isinstance(value, list):
            raise ValueError(f"is JSON, but a {type(value).__name__} instead of a list")
    return _texts(value)


def _texts(value: Any) -> list[str]:
    return [_text(v) for v in value] if is_list(value) else [_text(value)]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(t for t in texts if t.strip()))
