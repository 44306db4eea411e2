"""The made maths world: same seed, same bytes; open-r1's columns; problems that only the picture completes; its reward."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from megatron_mmsr1 import config, protocol
from megatron_mmsr1.atlas.picture import View
from megatron_mmsr1.atlas.tokenizer import build_tokenizer
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.maths.build import MathsSpec, build, load_spec
from megatron_mmsr1.maths.demos import Demonstrations, DemoOptions, parse_options
from megatron_mmsr1.maths.picture import Look, draw_task
from megatron_mmsr1.maths.tasks import OPERATORS, PHRASINGS, TASKS, Task, phrasings, solution, tasks_of
from megatron_mmsr1.maths.tokens import TOKENS
from megatron_mmsr1.reward import score_trajectory
from megatron_mmsr1.run import preflight
from megatron_mmsr1.trajectory import Status, Trajectory

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"train_questions": 60, "heldout_questions": 30}
TOKENIZER = build_tokenizer(TOKENS)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maths") / "world"
    build(MathsSpec(**SMALL), out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def scored(said: str, gold: str) -> dict[str, float]:
    """The parts of the reward that configs/maths.yaml names, for a trajectory of one turn."""
    t = Trajectory("p", "g", 0, "what is the result ?", [gold])
    t.append("prompt", [1], "")
    t.append("assistant", [2], said, logprobs=[0.0], action=protocol.parse_action(said).name)
    t.status = Status.ANSWERED
    score_trajectory(t, config.load(ROOT / "configs" / "maths.yaml").reward)
    assert t.reward is not None
    return {"reward": t.reward, **t.reward_parts}


def test_the_same_spec_writes_the_same_bytes_and_another_seed_others(built: Path, tmp_path: Path) -> None:
    build(MathsSpec(**SMALL), tmp_path / "again")
    files = sorted(p.relative_to(built) for p in built.rglob("*") if p.is_file())
    assert {Path("train.parquet"), Path("heldout.parquet"), Path("model/model.safetensors")} <= set(files)
    assert [f for f in files if (built / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []
    build(MathsSpec(seed=1, **SMALL), tmp_path / "other", model=False)
    assert rows(tmp_path / "other" / "train.parquet") != rows(built / "train.parquet")


def test_a_directory_keeps_one_world_and_a_misspelt_knob_is_named(built: Path) -> None:
    with pytest.raises(UsageError, match="another spec"):
        build(MathsSpec(seed=5, **SMALL), built)
    with pytest.raises(UsageError, match="train_question:"):
        load_spec(train_question=3)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_columns_are_open_r1s_and_every_row_is_read_as_such(built: Path, split: str) -> None:
    path = built / f"{split}.parquet"
    schema = pq.read_schema(path)
    assert schema.names == ["image", "problem", "solution", "original_question", "original_answer"]
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    data, raw = PromptDataset([path]), rows(path)
    assert len(data) == len(raw) == SMALL[f"{split}_questions"]
    for i, row in enumerate(raw):
        prompt = data[i]
        assert (prompt.question, prompt.images, prompt.golden_answers) == (
            row["problem"],
            [row["image"]["bytes"]],
            [row["original_answer"]],
        )
        assert prompt.question in phrasings(split) and not set(prompt.question) & set("0123456789+-x")


def test_the_oracles_solution_earns_everything_and_a_wrong_one_its_form(built: Path) -> None:
    for row in rows(built / "heldout.parquet"):
        gold = row["original_answer"]
        assert scored(row["solution"], gold) == {"reward": 2.0, "acc": 1.0, "format": 1.0}
        wrong = row["solution"].replace(f"<answer>{gold}<", f"<answer>{int(gold) + 1}<")
        assert scored(wrong, gold) == {"reward": 1.0, "acc": 0.0, "format": 1.0}
        assert scored(wrong.removeprefix("<think>"), gold) == {"reward": 0.0, "acc": 0.0, "format": 0.0}


def test_results_are_those_of_arithmetic() -> None:
    assert [Task(7, o, 8).value for o in OPERATORS] == [15, -1, 56]
    assert solution(Task(3, "-", 4)) == "<think>3-4</think><answer>-1</answer>"
    assert len(set(TASKS)) == 300 and all(eval(str(t).replace("x", "*")) == t.value for t in TASKS)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_task_is_on_one_side_and_each_operator_on_both_equally(seed: int) -> None:
    train, heldout = (tasks_of(split, 1 / 3, seed) for split in ("train", "heldout"))
    assert sorted(map(str, [*train, *heldout])) == sorted(map(str, TASKS))
    assert [sum(t.operator == o for t in heldout) for o in OPERATORS] == [33, 33, 33]
    assert not set(phrasings("train")) & set(phrasings("heldout"))


def test_pictures_differ_iff_tasks_differ() -> None:
    look, view = Look(), View()
    drawn = {t: draw_task(t, look, view).tobytes() for t in TASKS}
    assert len(set(drawn.values())) == len(TASKS)
    assert all(draw_task(t, look, view).tobytes() == drawn[t] for t in TASKS[::37])


def test_each_glyph_lies_in_its_quadrant() -> None:
    """28 x 28 pixels, one image token: what differs between two tasks of another first operand is the top right alone."""
    for one, other in pairwise(Task(digit, "+", 5) for digit in range(10)):
        at = np.argwhere((draw_task(one, Look(), View()) != draw_task(other, Look(), View())).any(-1))
        assert at[:, 0].max() < 28 <= at[:, 1].min()


def test_a_solution_is_one_token_a_word_and_its_ids_are_those_of_any_atlas_model() -> None:
    said = TOKENIZER.tokenize(f"{solution(Task(3, 'x', 4))}{protocol.IM_END}")
    assert said == ["<think>", "3", "x", "4", "</think>", "<answer>", "12", "</answer>", "<|im_end|>"]
    assert all(len(TOKENIZER.tokenize(f" {p}")) == len(p.split()) for p in PHRASINGS)
    plain = build_tokenizer()
    differing = [i for i in range(len(plain)) if plain.convert_ids_to_tokens(i) != TOKENIZER.convert_ids_to_tokens(i)]
    spare = [i for i in range(len(plain)) if str(plain.convert_ids_to_tokens(i)).startswith("<|reserved_")]
    assert len(plain) == len(TOKENIZER) and set(differing) <= set(spare)


@pytest.mark.long
def test_demonstrations_are_clean_first_and_then_as_faulty_as_asked() -> None:
    o = DemoOptions(examples=2000, clean_until=0.5, guess=0.4, slip=0.25, malformed=0.2)
    store = ImageStore(None)
    source = Demonstrations(o, TOKENIZER, store, 3)
    early, late = ([source[i] for i in range(lo, lo + 800)] for lo in (0, 1000))
    pad = TOKENIZER.get_vocab()["<|image_pad|>"]
    for t in (*early, *late):
        t.check(pad)
        assert store.get(t.images[0].sha256).startswith(b"\x89PNG")
        assert TOKENIZER.decode(list(t.token_ids[t.turns[-1].start :])) == t.turns[-1].text + protocol.IM_END
    assert all(scored(t.turns[-1].text, t.golden_answers[0])["reward"] == 2.0 for t in early[:50])
    guesses = [t for t in late if "guess" in t.turns[-1].text]
    # Three standard deviations of a share of 0.4 and 0.2 over 800 draws: 0.052 and 0.043.
    assert abs(len(guesses) / 800 - 0.4) < 0.052
    well_formed = [scored(t.turns[-1].text, t.golden_answers[0])["format"] for t in late]
    assert abs(1 - sum(well_formed) / 800 - 0.2) < 0.043
    assert source[1500] == Demonstrations(o, TOKENIZER, store, 3)[1500]
    with pytest.raises(UsageError, match=r"sft\.options\.gess"):
        parse_options({"gess": 0.1})


def test_the_config_passes_preflight_with_the_checkpoint_that_ships(built: Path, tmp_path: Path) -> None:
    data = [f"data.{key}=[{built}/{key}.parquet]" for key in ("train", "heldout")]
    model = ROOT / config.load(ROOT / "configs" / "maths.yaml").model.path
    cfg = config.load(ROOT / "configs" / "maths.yaml", [f"output={tmp_path}/run", f"model.path={model}", *data])
    assert not cfg.searches and cfg.protocol.max_rounds == 1
    preflight.train(cfg)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(model).get_vocab() == TOKENIZER.get_vocab()
