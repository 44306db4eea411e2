"""The page and the serving.yaml of an exported model: true, readable by serving, and silent about the machine that trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from loop_fixtures import COLD_START, ROOT, settings, small_world

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.eval.results import EvalResult, Row
from megatron_mmsr1.protocol import Prompts
from megatron_mmsr1.publish import model_card, serving_file
from serving import settings as serving_settings

HOSTILE = "</script><b>x</b> [a](https://evil.example) ![i](//evil.example/p.png) | `c` *b* www.evil.example\n# Head\n---\nhttp://e.co"


def finished(
    out: Path, world: Path, *more: str, name: str = "atlas", evals: tuple[str, ...] = ("before", "after")
) -> RunConfig:
    """A run's directory as training leaves it, with the shipped checkpoint as what it has learned."""
    cfg = config.load(ROOT / "configs" / "atlas.yaml", [*settings(world, out), "train.steps=7", *more])
    cfg = cfg.model_copy(update={"name": name})
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(config.dump(cfg))
    (out / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "time": 1_700_000_000 + 86_400 * n, "loss": 0.1}) + "\n" for n in range(7))
    )
    for n, e in enumerate(evals):
        row = Row("overall", 40, 0.25 * (n + 1), 0.5, 1.0, 0.6, 0.4)
        meta = {"search": {"mode": "live", "id": "sha256:abc", "backends": {}}}
        EvalResult(e, [Row("both", 40, 0.25 * (n + 1), 0.5, 1.0, 0.6, 0.4), row], [], meta).save(out / "eval" / f"{n}.json")
    shutil.copytree(COLD_START, out / "model")
    return cfg


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return small_world(tmp_path_factory.mktemp("card") / "world")


@pytest.fixture(scope="module")
def exported(world: Path, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("exported")
    finished(home / "run", world)
    assert cli.main(["export", str(home / "run"), str(home / "out")]) == 0
    return home / "out"


def front(page: str) -> dict[str, object]:
    return yaml.safe_load(page.split("---\n")[1])


def test_serving_reads_what_export_wrote(exported):
    cfg = serving_settings.load(str(exported), None, [])
    trained = config.load(ROOT / "configs" / "atlas.yaml")
    assert cfg.protocol == trained.protocol
    assert (cfg.model.min_pixels, cfg.model.max_pixels, cfg.model.dtype) == (3136, 3136, "float32")
    assert cfg.search.text_top_sentences == 1 and cfg.model.path == str(exported) and cfg.forced_reason.strip()


def test_every_key_is_one_of_servings(exported):
    """A key that serving does not know would keep the model from being served."""
    raw = yaml.safe_load((exported / serving_file.NAME).read_text())
    assert set(raw) <= set(serving_settings.ServeConfig.model_fields)


def test_the_page_says_what_was_done(exported):
    page = (exported / "README.md").read_text()
    assert front(page)["license"] == "unknown" and "licence not known" in page
    for said in ("7 of 7 steps", "seed 0", "tensor 2", "bm25", "sha256:abc", "2023-11-14 to 2023-11-20", "25.0%", "50.0%"):
        assert said in page, said
    assert "mmsr1 serve" in page and "from openai import OpenAI" in page and "curl " in page
    assert "`tilted`" in page and "train.parquet" in page


def test_nothing_of_the_machine_that_trained(exported, world):
    for name in ("README.md", serving_file.NAME):
        text = (exported / name).read_text()
        assert str(world) not in text and str(ROOT) not in text and str(exported) not in text
        assert not re.search(r"(?<![\w.:/`])/(tmp|home|root|work|usr|var)\b", text)


def test_nothing_secret_and_nothing_private_is_served(world, tmp_path):
    cfg = finished(
        tmp_path / "run",
        world,
        "search.keys=/root/keys",
        "search.cache=/scratch/cache.sqlite",
        "search.text.backend=serper",
        "search.text.key=sk-abcdef123",
        "search.text.url=http://10.0.0.5:80",
        "search.text.options={api_key: abc, token: MY_TOKEN, tbs: 'qdr:y', where: /srv/x}",
        "search.read.url=https://reader.example.org/v1",
        "search.summarise.url=http://me:pw@llm.example.org",
        "search.image.key=LENS_KEY",
        "search.fetch.allow=[intranet.corp]",
        "search.budget.run_usd=5",
        "search.mode=record",
        "search.error_rate=0.1",
    )
    got = serving_file.search(cfg)
    assert got == {
        "text": {"backend": "serper", "options": {"token": "MY_TOKEN", "tbs": "qdr:y"}},
        "read": {"url": "https://reader.example.org/v1"},
        "image": {"key": "LENS_KEY"},
        "text_top_sentences": 1,
    }


def test_prompts_of_a_file_go_with_the_model(world, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"first": "<image> Q ```\n# x: ", "after_image": "a", "after_text": "t"}))
    finished(tmp_path / "run", world, f"protocol.prompts={own}")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    own_text = Prompts.load(own)
    own.unlink()
    assert Prompts.load(serving_settings.load(str(moved), None, []).protocol.prompts) == own_text
    assert str(tmp_path) not in (moved / "README.md").read_text() + (moved / serving_file.NAME).read_text()
    # A prompt is shown as code: no line of it begins a heading or a fence.
    assert not [line for line in (moved / "README.md").read_text().splitlines() if line.startswith(("# x", "``` "))]


def test_what_calls_itself_something_hostile_is_text(world, tmp_path):
    finished(tmp_path / "run", world, name=HOSTILE, evals=("before", HOSTILE))
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    page = re.sub(r"^```.*?^```$", "", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "<b>" not in page and "<script" not in page and "</script" not in page
    assert "[a](" not in page and "![i](" not in page and "www.evil" not in page and "http://e" not in page
    assert page.count("\n# ") == 1 and page.count("\n---\n") == 1  # one heading, one end of the front matter
    assert set(front(page)) <= {"license", "library_name", "pipeline_tag", "tags", "base_model"}
    table = [line for line in page.splitlines() if line.startswith("| ")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert cells <= {3, 4}  # of the limits, and of two evaluations


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x\n", "apache-2.0"),
        ("no front", "unknown"),
        ("---\nlicense: [1, 2]\n---\n", "unknown"),
    ],
)
def test_the_licence_is_what_the_base_model_says(world, tmp_path, readme, licence):
    base = tmp_path / "base"
    shutil.copytree(COLD_START, base)
    (base / "README.md").write_text(readme)
    said = json.loads((base / "config.json").read_text()) | {"_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}
    (base / "config.json").write_text(json.dumps(said))
    cfg = finished(tmp_path / "run", world, f"model.path={base}")
    page = model_card.card(cfg, step=7, evals=[], days=None, search={})
    assert front(page)["license"] == licence and front(page)["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert "Not evaluated." in page


def test_a_cold_start_has_its_page_too(world, tmp_path):
    cfg = config.load(ROOT / "configs" / "atlas-sft.yaml", [f"output={tmp_path}"])
    page = model_card.card(cfg, step=3, evals=[], days=("2025-01-01", "2025-01-01"), search={})
    assert "demonstrations" in page and "on 2025-01-01" in page


def test_a_model_without_its_run_is_exported_and_said_to_lack_its_page(tmp_path, capsys):
    shutil.copytree(COLD_START, tmp_path / "run" / "model")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "config.yaml" in capsys.readouterr().err and not (tmp_path / "out" / serving_file.NAME).exists()
