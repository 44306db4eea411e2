"""Rows of parquet files as prompts, and errors that name the row."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megatron_mmsr1.data import dataset as dataset_module
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.errors import UsageError

MINI = Path(os.environ.get("MMSR1_SHARED") or Path(__file__).parents[2] / "shared") / "data" / "mmsearch_r1_mini.parquet"


def png(colour: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def row(n: int = 0, **change) -> dict:
    return {
        "prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"question {n}"}],
        "images": [{"bytes": png(n), "path": None}],
        "reward_model": {"ground_truth": "Spain", "candidate_answers": '["ESP", "Spain"]', "style": "rule"},
        "data_source": "mmsearch_r1/x",
        "image_urls": None,
    } | change


def write(path: Path, rows: list[dict], group: int = 2) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def test_verl_columns(tmp_path: Path) -> None:
    data = PromptDataset([write(tmp_path / "a.parquet", [row(0), row(1, data_source="imsearch")])])
    assert len(data) == 2
    p = data[1]
    assert (p.prompt_id, p.question, p.data_source, p.category) == ("a:1", "question 1", "imsearch", "")
    assert p.images == [png(1)]
    assert p.golden_answers == ["Spain", "ESP"]


def test_rows_of_many_files_and_row_groups_keep_their_order(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.parquet", [row(n) for n in range(5)]) for name in "ab"]
    data = PromptDataset(files)
    assert [p.prompt_id for p in data] == [f"{name}:{n}" for name in "ab" for n in range(5)]
    assert [p.question for p in data] == [f"question {n}" for n in range(5)] * 2
    with pytest.raises(IndexError):
        data[10]


def test_optional_columns(tmp_path: Path) -> None:
    extra = {"category": "search_free", "index": 7}
    rows = [
        row(data_id="q7", category="search_required", image_urls="http://x/y.png", extra_info=extra),
        row(data_id=None, category=None, image_urls=None, extra_info=extra),
    ]
    first, second = PromptDataset([write(tmp_path / "a.parquet", rows)])
    assert (first.prompt_id, first.category) == ("q7", "search_required")
    assert first.extra == extra | {"image_urls": "http://x/y.png"}
    assert (second.prompt_id, second.category, second.extra) == ("a:1", "search_free", extra)


@pytest.mark.parametrize(
    ("candidates", "golds"),
    [
        (["ESP", "Spain"], ["Spain", "ESP"]),
        (json.dumps(["España", "Spain"]), ["Spain", "España"]),
        (json.dumps([1492]), ["Spain", "1492"]),
        ("", ["Spain"]),
        (None, ["Spain"]),
        ([], ["Spain"]),
    ],
)
def test_candidate_answers(tmp_path: Path, candidates: object, golds: list[str]) -> None:
    reward = {"ground_truth": "Spain", "candidate_answers": candidates}
    assert PromptDataset([write(tmp_path / "a.parquet", [row(reward_model=reward)])])[0].golden_answers == golds


def test_open_r1_columns(tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": png(), "path": "x.png"},
            "problem": "How many?",
            "solution": "<think>two\nand two</think><answer> 4 </answer>",
            "original_question": "Question: how many?",
            "original_answer": "four",
        },
        {"image": None, "problem": "2+2?", "solution": "4", "original_question": "", "original_answer": "4"},
    ]
    first, second = PromptDataset([write(tmp_path / "a.parquet", rows)])
    assert (first.question, first.golden_answers, first.images) == ("How many?", ["4", "four"], [png()])
    assert first.extra == {"original_question": "Question: how many?"}
    assert (second.images, second.golden_answers) == ([], ["4"])


def test_typed_parts_of_a_message(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    data = PromptDataset([write(tmp_path / "a.parquet", [row(prompt=[{"role": "user", "content": parts}])])])
    assert data[0].question == "What is it?"


BROKEN = [
    ("images[0]", {"images": [{"bytes": png()[:60], "path": None}]}),
    ("images[0]", {"images": [{"bytes": None, "path": "x.png"}]}),
    ("images[1]", {"images": [{"bytes": png(), "path": None}, {"bytes": b"no picture", "path": None}]}),
    ("prompt", {"prompt": [{"role": "system", "content": "x"}]}),
    ("prompt", {"prompt": [{"role": "user", "content": " "}]}),
    ("prompt", {"prompt": None}),
    ("reward_model", {"reward_model": None}),
    ("reward_model.ground_truth", {"reward_model": {"ground_truth": "", "candidate_answers": "[]", "style": "rule"}}),
    ("reward_model.candidate_answers", {"reward_model": {"ground_truth": "x", "candidate_answers": "[oops", "style": ""}}),
    ("reward_model.candidate_answers", {"reward_model": {"ground_truth": "x", "candidate_answers": "{}", "style": ""}}),
]


@pytest.mark.parametrize(("column", "change"), BROKEN)
def test_a_broken_row_is_named(tmp_path: Path, column: str, change: dict) -> None:
    path = write(tmp_path / "a.parquet", [row(0), row(1), row(2), row(3, **change)])
    data = PromptDataset([path])
    assert data[2].question == "question 2"
    with pytest.raises(UsageError) as e:
        data[3]
    assert f"{path}, row 3, column {column}:" in str(e.value)


def test_skipping_counts_and_closes_the_gaps(tmp_path: Path) -> None:
    rows = [row(n, **(BROKEN[n // 2][1] if n % 2 else {})) for n in range(12)]
    data = PromptDataset([write(tmp_path / "a.parquet", rows, group=5)], bad_rows="skip")
    assert data.skipped == 6
    assert [p.prompt_id for p in data] == [f"a:{n}" for n in range(0, 12, 2)]


def test_files_that_are_no_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data file at .*gone\.parquet"):
        PromptDataset([tmp_path / "gone.parquet"])
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(UsageError, match=r"text\.parquet is not a readable parquet"):
        PromptDataset([tmp_path / "text.parquet"])
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"question": ["x"]}), other)
    with pytest.raises(UsageError, match=r"other\.parquet has columns question: need prompt, reward_model"):
        PromptDataset([other])


def test_row_groups_are_read_when_asked_for_and_kept_within_bounds(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.parquet", [row(n) for n in range(6)])
    data = PromptDataset([path])
    assert not data._cache
    _ = data[4]
    assert list(data._cache) == [2]
    monkeypatch.setattr(dataset_module, "CACHE_BYTES", 1)
    assert [data[i].question for i in (0, 5, 2, 0)] == [f"question {i}" for i in (0, 5, 2, 0)]
    assert list(data._cache) == [0]


def test_survives_the_trip_to_another_process(tmp_path: Path) -> None:
    data = PromptDataset([write(tmp_path / "a.parquet", [row(0)])])
    _ = data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert not copy._cache
    assert copy[0] == data[0]


@pytest.mark.skipif(not MINI.exists(), reason="the five real FVQA rows are not here (MMSR1_SHARED)")
def test_real_rows() -> None:
    data = PromptDataset([MINI])
    assert len(data) == 5
    assert data[0].question == "What is the country of origin of this food?"
    assert data[0].golden_answers == ["Spain", "Kingdom of Spain", "ESP", "🇪🇸", "ES"]
