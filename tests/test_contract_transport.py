"""Every weight transport that ships, through its contract, with every engine; and what the engines hold after a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contracts.engine import EngineUnderTest
from contracts.transport import CONTRACT, TransportUnderTest, tensors_of
from engine_fixtures import tested, transformers_engine  # noqa: F401

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout import engines as kinds
from megatron_mmsr1.rollout.engines.base import Served, Unreachable
from megatron_mmsr1.run.weights import Weights
from megatron_mmsr1.sync import published, transports
from megatron_mmsr1.sync.transports.tensors import buckets
from megatron_mmsr1.sync.update import Good, everywhere, update

SMALL = {"disk": {"shard_mb": 0.1}, "tensors": {"bucket_mb": 0.1}}


@pytest.fixture(params=sorted(SMALL))
def transport(request: pytest.FixtureRequest, tested: EngineUnderTest, tmp_path: Path) -> TransportUnderTest:  # noqa: F811
    part = transports.get(request.param)
    settings = part.Settings(**SMALL[request.param])
    return TransportUnderTest(part, settings, [tested.control], tmp_path / "weights", tested.first, tested.second)


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda r: r.__name__)
def test_the_contract(transport: TransportUnderTest, rule):
    rule(transport)


def test_every_transport_is_tested():
    assert transports.REGISTRY.names() == sorted(SMALL)


def test_what_is_no_transport_is_refused_with_its_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("class Transport: ...\n")
    with pytest.raises(UsageError, match=r"train\.sync=.*mine\.py breaks the contract of a transport: it has no method open"):
        transports.get(f"{file}:Transport")


def test_a_tensor_of_another_shape_never_reaches_an_engine(checkpoints: dict[str, Path], tmp_path: Path):
    """SGLang's scheduler does not survive one."""
    part = transports.get("tensors")
    a = Scripted("http://a")
    name, first = next(tensors_of(checkpoints["random"]))
    t = part.open(part.Settings(), [a], home=tmp_path, model=checkpoints["random"])  # type: ignore[list-item]
    for wrong, said in ((name, f"{name} of shape"), ("of.no.model", "in the model that the engines run it is none")):
        with pytest.raises(RunError, match=said):
            t.push(iter([(wrong, first.new_zeros(3))]), 2)
    assert "send" not in a.calls and a.paused


# ------------------------------------------------------------------------------------------------- what a failure leaves
@dataclass
class Scripted:
    """An engine of which every call is known. `breaks`: the call that raises, as often as it says."""

    url: str
    breaks: dict[str, int] = field(default_factory=dict)
    weights: Any = "v0"
    held: int = 0
    paused: bool = False
    calls: list[str] = field(default_factory=list)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.breaks.get(name, 0):
            self.breaks[name] -= 1
            raise RunError(f"{self.url} broke in {name}")

    def pause(self, mode: str = "abort") -> None:
        self._called("pause")
        self.paused = True

    def resume(self) -> None:
        self._called("resume")
        self.paused = False

    def load(self, directory: Path, version: int) -> None:
        assert self.paused, "the weights of an engine that samples must not change"
        self.weights = "a mixture"  # as SGLang: what failed half-way is in there
        self._called("load")
        self.weights, self.held = f"v{version}", version

    def begin(self, version: int) -> None:
        self._called("begin")

    def send(self, tensors: Any) -> None:
        self._called("send")

    def version(self) -> int:
        self._called("version")
        return self.held

    def checksum(self) -> str:
        return str(self.weights)

    def served(self) -> Served:
        return Served(None, self.held)


def change(engines: Sequence[Any], version: int, last: Good | None = None) -> Good:
    def load(e: Any) -> None:
        e.load(Path("new"), version)

    return update(engines, lambda es: everywhere(es, load), version, last=last, again=load)


def two() -> tuple[Scripted, Scripted, Good]:
    a, b = Scripted("http://a"), Scripted("http://b")
    return a, b, change([a, b], 1)


@pytest.mark.parametrize("where", ["load", "version", "resume"])
def test_after_a_failure_every_engine_holds_the_last_good_weights_again(where: str):
    """Before, an engine was said to keep its old weights, which nothing made true; the others kept the new ones."""
    a, b, good = two()
    b.breaks = {where: 1}
    with pytest.raises(RunError, match=rf"http://b broke in {where}.*weights of version 1 again"):
        change([a, b], 2, good)
    assert [(e.weights, e.held, e.paused) for e in (a, b)] == [("v1", 1, False)] * 2


def test_an_engine_that_cannot_be_mended_stays_paused_and_is_named():
    a, b, good = two()
    b.breaks = {"load": 2}
    with pytest.raises(RunError, match=r"http://a: weights of version 1 again.*http://b: weights unknown, paused"):
        change([a, b], 2, good)
    assert (a.weights, a.paused) == ("v1", False) and b.paused


def test_other_checksums_than_before_are_no_restoration():
    a, b, good = two()
    good.checksums["http://b"] = "of other weights"
    b.breaks = {"load": 1}
    with pytest.raises(RunError, match=r"http://b: weights unknown"):
        change([a, b], 2, good)
    assert b.paused


def test_engines_that_differ_are_not_let_go_on():
    a, b, good = two()
    b.checksum = lambda: "other"  # type: ignore[method-assign]
    with pytest.raises(RunError, match="the engines differ"):
        change([a, b], 2, good)
    assert b.paused


def test_without_last_good_weights_nothing_samples():
    a, b = Scripted("http://a"), Scripted("http://b", breaks={"load": 1})
    with pytest.raises(RunError, match="not known: they are paused"):
        change([a, b], 1)
    assert a.paused and b.paused


def test_an_engine_that_cannot_even_be_paused_changes_nothing():
    a, b, good = two()
    b.breaks = {"pause": 1}
    with pytest.raises(RunError, match="http://b broke in pause"):
        change([a, b], 2, good)
    assert [(e.weights, e.paused) for e in (a, b)] == [("v1", False)] * 2


# --------------------------------------------------------------------------------------------------- the run's publication
def weights_of_a_run(
    engines: list[Scripted], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> Weights:
    """A run's own, on a single rank; only the engines are scripted, since no real one dies at a moment that is chosen."""
    by_url = {e.url: e for e in engines}
    monkeypatch.setattr(kinds, "get", lambda name: SimpleNamespace(control=by_url.__getitem__))
    alone = SimpleNamespace(rank=0, broadcast_object=lambda value: value)
    actor = SimpleNamespace(parallel=alone, weights=lambda: iter(list(tensors_of(checkpoint))))
    cfg = RunConfig.model_validate({"model": {"path": str(checkpoint)}, "output": str(tmp_path / "run"), "engine": more})
    return Weights(cfg, actor, list(by_url))  # type: ignore[arg-type]


@dataclass
class Dying(Scripted):
    """Nothing answers at its address once it has been given weights, `gone` times."""

    gone: int = 10**6

    def load(self, directory: Path, version: int) -> None:
        if self.gone:
            raise Unreachable(f"{self.url}: Connection refused")
        super().load(directory, version)

    def served(self) -> Served:
        if self.gone and "pause" in self.calls:
            self.gone -= 1
            raise Unreachable(f"{self.url}: Connection refused")
        return super().served()


def test_an_engine_that_dies_in_an_update_has_no_part_in_it_and_the_others_do(checkpoints, tmp_path, monkeypatch):
    a, b = Scripted("http://a"), Dying("http://b")
    weights = weights_of_a_run([a, b], checkpoints["random"], tmp_path, monkeypatch)
    weights.publish(1)
    assert (a.held, a.paused, weights.absent) == (1, False, ["http://b"])
    assert "http://b: Connection refused" in weights.failed_first
    weights.publish(2)
    assert (a.held, weights.absent, weights.failed_first) == (2, ["http://b"], "")


def test_the_only_engine_is_waited_for_after_it_died_in_an_update(checkpoints, tmp_path, monkeypatch):
    only = Dying("http://b", gone=1)
    weights = weights_of_a_run([only], checkpoints["random"], tmp_path, monkeypatch)
    weights.publish(1)
    assert (only.held, only.paused, weights.absent) == (1, False, []) and weights.failed_first


def test_an_update_that_fails_twice_ends_the_run(checkpoints, tmp_path, monkeypatch):
    a, b = Scripted("http://a"), Scripted("http://b", breaks={"load": 10})
    weights = weights_of_a_run([a, b], checkpoints["random"], tmp_path, monkeypatch, outage_s=0)
    with pytest.raises(RunError, match="http://b broke in load"):
        weights.publish(1)


# ------------------------------------------------------------------------------------------------------------- the pieces
def test_what_was_published_is_found_again_and_only_while_it_is_there(tmp_path: Path):
    assert published.read(tmp_path) is None
    weights = tmp_path / "v000003"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    published.write(tmp_path, weights, 3)
    assert published.read(tmp_path) == (weights, 3)
    (weights / "config.json").unlink()
    assert published.read(tmp_path) is None


def test_buckets_are_a_partition_in_order_and_small(checkpoints: dict[str, Path]):
    def sizes() -> Iterator[list[int]]:
        for bucket in buckets(tensors_of(checkpoints["random"]), 100_000):
            names.extend(n for n, _ in bucket)
            yield [t.nbytes for _, t in bucket]

    names: list[str] = []
    assert all(len(s) == 1 or sum(s) <= 100_000 for s in sizes())
    assert names == [n for n, _ in tensors_of(checkpoints["random"])]
