"""Bad input as a person meets it, through the command: one paragraph that names the thing and what to do; 2 for wrong usage,
1 where the world failed. All but one of these are refused before a process is started."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loop_fixtures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loop_fixtures import ROOT, settings, small_world

from megatron_mmsr1 import config
from megatron_mmsr1.cli import entry
from megatron_mmsr1.procs.ports import free_port

ATLAS = "configs/atlas.yaml"
BAD_ROW = 3
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def mmsr1(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in this process, where what it imports is there already: it takes no time to refuse."""
    monkeypatch.chdir(ROOT)

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = entry.main(args)
        return subprocess.CompletedProcess(args, code, *capfd.readouterr())

    return command


@pytest.fixture
def train(world: Path, out: Path, mmsr1: Command) -> Command:
    """`mmsr1 train` in the world, with the world's random model unless the overrides name another."""

    def command(*overrides: str) -> subprocess.CompletedProcess[str]:
        return mmsr1("train", ATLAS, *settings(world, out, f"model.path={world}/model", *overrides))

    return command


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


@pytest.fixture
def nobody() -> str:
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def refused(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "should not have happened" not in done.stderr
    head, mark, message = done.stderr.rpartition("mmsr1: ")
    assert mark and "mmsr1: " not in head, f"one message, last: {done.stderr}"
    assert "\n\n" not in message.strip()
    for word in says:
        assert word in message, message


# ------------------------------------------------------------------------------------------------------------- settings
def test_a_misspelt_key(train: Command) -> None:
    refused(train("train.stpes=3"), 2, ATLAS, "unknown key train.stpes", "did you mean steps?")


def test_no_config_file() -> None:
    """As a process of its own, as a person starts it."""
    refused(loop_fixtures.mmsr1("train", "configs/nothing.yaml"), 2, "no config at configs/nothing.yaml")


def test_ranks_that_do_not_divide(train: Command) -> None:
    refused(train("train.ranks=3"), 2, "train.ranks=3", "= 2")


def test_prompts_that_do_not_divide(train: Command) -> None:
    done = train("data.prompts_per_step=5", "megatron.tensor_parallel=1")
    refused(done, 2, "data.prompts_per_step=5", "2 data-parallel ranks")


def test_a_cold_start_is_not_trained_by_grpo(mmsr1: Command, world: Path, out: Path) -> None:
    done = mmsr1("train", "configs/atlas-sft.yaml", f"model.path={world}/model", f"output={out}")
    refused(done, 2, "algorithm.name", "mmsr1 sft")


def test_a_rank_s_own_complaint_reaches_the_person(mmsr1: Command, world: Path, out: Path) -> None:
    """Of the native fields only megatron-core knows the names, so this one is found by the ranks."""
    more = [f"model.path={world}/model", f"output={out}", "train.ranks=1", "megatron.provider.num_layer=3"]
    done = mmsr1("sft", "configs/atlas-sft.yaml", *more)
    refused(done, 2, "unknown key megatron.provider.num_layer", "num_layers", f"{out}/logs/ranks.log")


def test_a_directory_of_another_configuration(world: Path, out: Path, train: Command) -> None:
    out.mkdir()
    other = config.load(ROOT / ATLAS, settings(world, out, f"model.path={world}/model", "optimizer.lr=0.5"))
    (out / "config.yaml").write_text(config.dump(other))
    (out / "metrics.jsonl").write_text('{"step": 0}\n')
    refused(train(), 2, str(out), "differing: optimizer.lr.", "another output=")
    assert (out / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_an_output_that_cannot_be_written(out: Path, train: Command) -> None:
    out.write_text("a file")
    refused(train(f"output={out}/below"), 2, f"output={out}/below")


# ----------------------------------------------------------------------------------------------------------------- data
def broken_table(source: Path, target: Path, **cells: Any) -> Path:
    """A copy of a parquet file whose row BAD_ROW holds these cells instead."""
    table = pq.read_table(source)
    rows = table.to_pylist()
    rows[BAD_ROW] |= cells
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target)
    return target


@pytest.mark.parametrize(
    ("cells", "column", "why"),
    [
        ({"prompt": []}, "column prompt", "no text of a user"),
        ({"images": [{"bytes": b"\x89PNG\r\n\x1a\n, and then nothing"}]}, "column images[0]", "cannot be decoded"),
        ({"images": [{"bytes": b""}]}, "column images[0]", "no bytes"),
    ],
    ids=["no prompt", "undecodable image", "empty image"],
)
def test_a_broken_row(world: Path, tmp_path: Path, train: Command, cells: dict, column: str, why: str) -> None:
    file = broken_table(world / "train.parquet", tmp_path / "broken.parquet", **cells)
    done = train(f"data.train=[{file}]")
    refused(done, 2, "data.train", str(file), f"row {BAD_ROW}", column, why, "data.bad_rows=skip")


def test_broken_rows_can_be_left_out_and_are_counted(mmsr1: Command, world: Path, out: Path, tmp_path: Path) -> None:
    file = broken_table(world / "heldout.parquet", tmp_path / "broken.parquet", images=[{"bytes": b"no image"}])
    more = settings(world, out, f"model.path={world}/model", f"data.heldout=[{file}]", "data.bad_rows=skip")
    done = mmsr1("eval", ATLAS, *more, "--policies")
    assert done.returncode == 0, done.stderr
    assert f"data.heldout: 1 of 16 rows are left out, the first: {file}, row {BAD_ROW}, column images[0]" in done.stderr
    results = json.loads((out / "eval" / "policies.json").read_text())["results"]
    assert {r["rows"][-1]["n"] for r in results} == {15}
    assert "evaluating 15 questions (oracle) ..." in done.stderr and f"written to {out}/eval/policies.json" in done.stderr


def test_policies_answer_atlas_questions_only(mmsr1: Command, world: Path, out: Path, tmp_path: Path) -> None:
    """Said once only after a search server had been started."""
    file = broken_table(world / "heldout.parquet", tmp_path / "foreign.parquet", images=[])
    more = settings(world, out, f"model.path={world}/model", f"data.heldout=[{file}]")
    refused(mmsr1("eval", ATLAS, *more, "--policies"), 2, "scripted policies answer Atlas questions only", "data.heldout")
    assert not out.exists()


def test_a_torn_parquet_file(world: Path, tmp_path: Path, train: Command) -> None:
    whole = (world / "train.parquet").read_bytes()
    file = tmp_path / "torn.parquet"
    file.write_bytes(whole[: len(whole) // 2])
    refused(train(f"data.train=[{file}]"), 2, f"{file} is not a readable parquet file")


def test_no_data(train: Command, tmp_path: Path) -> None:
    refused(train(f"data.train=[{tmp_path}/none.parquet]"), 2, f"no data file at {tmp_path}/none.parquet")


# ---------------------------------------------------------------------------------------------------------- checkpoints
def test_no_model(train: Command, out: Path, tmp_path: Path) -> None:
    refused(train(f"model.path={tmp_path}/none"), 2, "model.path", f"{tmp_path}/none/config.json is missing")
    assert not out.exists(), "a run that could not begin leaves nothing that a corrected one would meet"


def test_a_missing_shard(world: Path, tmp_path: Path, train: Command) -> None:
    model = shutil.copytree(world / "model", tmp_path / "model")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    refused(train(f"model.path={model}"), 1, "model.path", str(model), "no model-00002-of-00002.safetensors", "again")


def test_a_torn_shard(world: Path, tmp_path: Path, train: Command) -> None:
    model = shutil.copytree(world / "model", tmp_path / "model")
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused(train(f"model.path={model}"), 1, "model.path", f"{shard}: torn", "again")


def test_another_architecture(world: Path, tmp_path: Path, train: Command) -> None:
    model = shutil.copytree(world / "model", tmp_path / "model")
    known = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(known | {"architectures": ["LlamaForCausalLM"]}))
    refused(train(f"model.path={model}"), 2, "model.path", "LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration")


def test_pictures_that_the_engine_would_resize_again(train: Command) -> None:
    refused(train("model.max_pixels=1000000"), 2, "model.max_pixels=1000000", "processor_config.json", "3136 to 802816")


def test_weights_without_their_tokenizer(world: Path, tmp_path: Path, train: Command) -> None:
    model = shutil.copytree(world / "model", tmp_path / "model")
    (model / "tokenizer.json").unlink()
    refused(train(f"model.path={model}"), 2, "model.path", "tokenizer.json")


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_a_checkpoint_to_resume_from_that_is_not_whole(out: Path, train: Command, damage: str) -> None:
    """Laid out as a save leaves it: shards, their sizes in the manifest, the name in `latest`."""
    step = out / "checkpoints" / "step_000002"
    step.mkdir(parents=True)
    shard = step / "__0_0.distcp"
    shard.write_bytes(b"x" * 90)
    sizes = {shard.name: 100 if damage == "torn" else 90, "extra.pt": 10}
    (step / "manifest.json").write_text(json.dumps({"layout": [2, 1, 1], "files": sizes}))
    (out / "checkpoints" / "latest").write_text(step.name)
    named = shard if damage == "torn" else step / "extra.pt"
    refused(train(), 1, f"checkpoint file {named} is {damage}", "into the file `latest`")
    assert shard.exists()


def test_latest_names_nothing(out: Path, train: Command) -> None:
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "latest").write_text("step_000007")
    refused(train(), 1, f"{out}/checkpoints/latest", "step_000007", "not a complete checkpoint")


# -------------------------------------------------------------------------------------------------------------- servers
def test_an_engine_that_is_down(train: Command, nobody: str) -> None:
    refused(train(f"engine.urls=[{nobody}]"), 1, "engine.urls", f"{nobody} does not answer", "refused", "start it")


def test_a_search_server_that_is_down(train: Command, nobody: str) -> None:
    refused(train(f"search.url={nobody}"), 1, "search.url", f"{nobody} does not answer", "mmsr1 search serve")


def test_what_is_no_url(train: Command) -> None:
    refused(train("search.url=localhost:8100"), 2, "search.url", "'localhost:8100'", "http://HOST:PORT")


def test_nothing_to_search(train: Command, tmp_path: Path) -> None:
    refused(train(f"search.corpus={tmp_path}"), 2, "search.corpus", f"no corpus.jsonl in {tmp_path}")


def test_a_port_that_is_taken(mmsr1: Command, world: Path, train: Command, taken: int) -> None:
    done = mmsr1("search", "serve", f"corpus={world}", "--port", str(taken))
    refused(done, 1, f"port {taken} on 127.0.0.1", "end what listens there")
    refused(train(f"engine.sglang.port={taken}"), 1, f"port {taken}", "engine.sglang.port", "name another port")
