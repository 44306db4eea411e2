"""What several rooms' tests share: hypothesis without deadlines, tiny checkpoints, and one real SGLang server a session."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny_checkpoint
from examples import examples
from hypothesis import settings

if TYPE_CHECKING:
    from slurm_cluster import Cluster

    from megatron_mmsr1.config import EngineConfig
    from megatron_mmsr1.procs.service import Service

# No failure may depend on the clock, nor on what happens to be drawn for a change that has nothing to do with it: the
# examples are the same each time. MMSR1_DRAW=1 draws new ones.
settings.register_profile("mmsr1", max_examples=examples(100), deadline=None, derandomize=os.environ.get("MMSR1_DRAW") != "1")
settings.load_profile("mmsr1")
# torch's threads wait busily, and the workers and what their tests start share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["suite"]

# What the engine says under each checkpoint. "chain" searches or answers, each a third of the time; "pads" wants to say
# nothing but image pads.
CHECKPOINTS: dict[str, dict[str, object]] = {
    "random": {"seed": 0},
    "other": {"seed": 1},
    "chain": {
        "seed": 2,
        "chain": [
            "\n<search><img></search><|im_end|>",
            "\n<text_search>q</text_search><|im_end|>",
            "\n<answer>x</answer><|im_end|>",
        ],
    },
    "pads": {"seed": 3, "chain": ["\n<|image_pad|>", "a<|vision_start|>", "b<|video_pad|>"]},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Qwen2.5-VL checkpoints of one architecture, by name (`CHECKPOINTS`)."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_checkpoint.write(root / name, **options) for name, options in CHECKPOINTS.items()}  # type: ignore[arg-type]


def launch_engine(checkpoint: Path, log: Path, cfg: EngineConfig | None = None) -> Service:
    from megatron_mmsr1.procs.service import Service
    from megatron_mmsr1.rollout.engines.base import Launch
    from megatron_mmsr1.rollout.engines.sglang import ENGINE, SGLangSettings

    cfg = cfg or SGLangSettings(sglang={"max_total_tokens": 16384})
    # The contract updates the vision tower, and so nothing may keep features of pictures.
    return Service(ENGINE.command(Launch(model=checkpoint, settings=cfg, log=log, trains_pictures=True))).start()


@pytest.fixture(scope="session")
def engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real SGLang server that starts with the checkpoint "random". Tests that care call `weights` first."""
    with launch_engine(checkpoints["random"], tmp_path_factory.mktemp("engine") / "engine.log") as server:
        yield server


_versions = itertools.count(1)


@pytest.fixture
def weights(engine: Service, checkpoints: dict[str, Path]) -> Callable[[str], int]:
    """Puts a checkpoint into the engine by name, under a version never used before, and returns that version."""
    from megatron_mmsr1.rollout.engines.sglang.control import SGLangControl

    def load(name: str) -> int:
        version = next(_versions)
        SGLangControl(engine.url).load(checkpoints[name], version)
        return version

    return load


# ---------------------------------------------------------------------------------------------------- a model that searches
@pytest.fixture(scope="session")
def atlas_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Atlas world on disk."""
    from loop_fixtures import small_world

    return small_world(tmp_path_factory.mktemp("atlas") / "world")


@pytest.fixture(scope="session")
def atlas_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real SGLang server of the shipped Atlas checkpoint, which nobody gives other weights."""
    from loop_fixtures import COLD_START

    with launch_engine(COLD_START, tmp_path_factory.mktemp("atlas_engine") / "engine.log") as server:
        yield server


@pytest.fixture(scope="session")
def atlas_search(atlas_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real search server over `atlas_world`."""
    from serving_fixtures import atlas_config

    from megatron_mmsr1.search.server.launch import launch

    home = tmp_path_factory.mktemp("atlas_search")
    cfg = atlas_config(atlas_world).search
    with launch(cfg, cache_path=home / "cache.sqlite", log=home / "search.log") as server:
        yield server.url


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm of two nodes, with jobs of nobody else. For slow tests."""
    import slurm_cluster

    with slurm_cluster.started() as cluster:
        yield cluster
