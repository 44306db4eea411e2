"""What is refused or warned of before a run's first process starts, without starting one."""

from __future__ import annotations

import asyncio
import io
import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_fixtures import COLD_START, ROOT, settings
from PIL import Image

from megatron_mmsr1 import config
from megatron_mmsr1.cluster.machines import Machines
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.decode import ImageError, decode, stored_size
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout.agent import open_group, opening_tokens
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.run import preflight
from megatron_mmsr1.run.preflight_rows import SAMPLE, check_rows, chosen_rows, prompt_length
from megatron_mmsr1.run.services import services


def run(world: Path, out: Path, *more: str) -> RunConfig:
    return config.load(ROOT / "configs" / "atlas.yaml", settings(world, out, f"model.path={COLD_START}", *more))


# ------------------------------------------------------------------------------------------------------------ the prompts
def test_the_tokens_of_a_first_prompt_are_those_of_the_rollout(atlas_world: Path, tmp_path: Path) -> None:
    """What preflight counts from a picture's header is what the rollout counts after it made the picture canonical."""
    cfg = run(atlas_world, tmp_path)
    context = Context.open(cfg, None, ImageStore(None))
    data = PromptDataset(cfg.data.heldout)
    for prompt in (data[i] for i in range(len(data))):
        opening = asyncio.run(open_group(context, prompt))
        assert opening_tokens(context, prompt) == len(opening.message.ids)


@pytest.mark.parametrize("size", [(13, 7), (56, 56), (300, 40), (999, 1001)])
def test_the_header_s_size_gives_the_tokens_of_the_canonical_picture(atlas_world: Path, tmp_path: Path, size) -> None:
    cfg = run(atlas_world, tmp_path, "model.max_pixels=802816")
    context = Context.open(cfg, None, ImageStore(None))
    for orientation in (1, 6):  # 6: a camera held upright, width and height change places
        out, exif = io.BytesIO(), Image.Exif()
        exif[274] = orientation
        Image.new("RGB", size, (9, 9, 9)).save(out, "JPEG", exif=exif)
        canonical = asyncio.run(context.canonical(out.getvalue()))
        assert context.picture_tokens(out.getvalue()) == context.pictures.tokens(canonical.grid_thw)


def test_a_run_whose_prompts_are_all_too_long_is_refused(atlas_world: Path, tmp_path: Path) -> None:
    """Such a run once trained a hundred steps on nothing and exported a model."""
    cfg = run(atlas_world, tmp_path, "protocol.max_prompt_tokens=4")
    with pytest.raises(UsageError, match=r"data\.train: 64 of 64 first prompts are longer than protocol\.max_prompt_tokens=4"):
        preflight.train(cfg)


def test_prompts_that_are_too_long_are_warned_of_by_number(
    atlas_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = run(atlas_world, tmp_path)
    lengths = [prompt_length(cfg)(p) for p in map(PromptDataset(cfg.data.train).__getitem__, range(64))]
    limit = sorted(lengths)[32]
    above = sum(n > limit for n in lengths)
    assert 0 < above < 64
    cfg = run(atlas_world, tmp_path, f"protocol.max_prompt_tokens={limit}")
    check_rows(cfg, cfg.data.train, "data.train", prompt_length(cfg))
    first = next(i for i, n in enumerate(lengths) if n > limit)
    said = capsys.readouterr().err
    assert f"warning: data.train: {above} of 64 first prompts" in said
    assert f"(row {first} has {lengths[first]} tokens, the longest {max(lengths)})" in said


# --------------------------------------------------------------------------------------------------------------- the rows
def test_every_bad_row_is_counted_once_by_however_many_threads(
    atlas_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(atlas_world / "train.parquet")
    rows = table.to_pylist() * 4
    bad = [3, 64, 65, 200, 255]
    for i in bad:
        rows[i] = rows[i] | {"images": [{"bytes": b"no picture", "path": None}]}
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file, row_group_size=50)
    cfg = run(atlas_world, tmp_path, "data.bad_rows=skip")
    check_rows(cfg, [str(file)], "data.train", None)
    assert f"data.train: 5 of 256 rows are left out, the first: {file}, row 3, column images[0]" in capsys.readouterr().err
    cfg = run(atlas_world, tmp_path)
    with pytest.raises(UsageError, match=r"data\.train: .*column images\[0\].*data\.bad_rows=skip"):
        check_rows(cfg, [str(file)], "data.train", None)
    check_rows(run(atlas_world, tmp_path, "data.check=none"), [str(file)], "data.train", None)  # the way out


@given(st.integers(0, 5000))
def test_a_sample_is_spread_from_the_first_row_to_the_last(total: int) -> None:
    rows = chosen_rows(total, "sample")
    assert rows == sorted(set(rows)) and len(rows) == min(total, SAMPLE)
    assert chosen_rows(total, "all") == list(range(total)) and chosen_rows(total, "none") == []
    if total:
        assert rows[0] == 0 and rows[-1] == total - 1
        assert max((b - a for a, b in itertools.pairwise(rows)), default=0) <= (total - 1) // (SAMPLE - 1) + 1


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_bytes_that_are_no_picture_are_told_without_an_object_s_address(data: bytes) -> None:
    for read in (decode, stored_size):
        with pytest.raises(ImageError) as e:
            read(data)
        assert "0x" not in str(e.value) and "object at" not in str(e.value)


# ------------------------------------------------------------------------------------------- what cost an engine's start
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["train.ranks=3", "megatron.tensor_parallel=3"], "tensor_parallel=3: the model's 4 attention heads"),
        (["train.ranks=5", "megatron.tensor_parallel=1", "megatron.pipeline_parallel=5"], "4 layers are too few for 5 chunks"),
        (["reward.name=foo"], "reward.name=foo: no such reward"),
        (["model.path=Qwen/Qwen2.5-VL-7B-Instruct"], "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir"),
    ],
)
def test_layout_reward_and_hub_names_are_checked_before_anything_starts(
    atlas_world: Path, tmp_path: Path, more: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as e:
        preflight.train(run(atlas_world, tmp_path, *more))  # some when the config is read
    assert says in str(e.value)


def test_a_run_that_searches_nothing_needs_no_search_server(atlas_world: Path, tmp_path: Path) -> None:
    bare = ["search.corpus=null", "protocol.max_rounds=1", "protocol.image_searches=0", "protocol.text_searches=0"]
    cfg = run(atlas_world, tmp_path, *bare, "reward=math")
    preflight.train(cfg)
    with services(cfg, Machines.alone(1), engine=False) as found:
        assert found.search is None and not (tmp_path / "logs").exists()
    with pytest.raises(UsageError, match="nothing to search"):
        preflight.train(run(atlas_world, tmp_path, "search.corpus=null"))
