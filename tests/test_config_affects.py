"""What a change of a setting affects: every field says it, and resume, dumps and serving read it from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_mmsr1 import config
from megatron_mmsr1.config import parse
from megatron_mmsr1.config.affects import RESULTS, differing, fingerprint, keys_of, leaves
from megatron_mmsr1.config.section import Affects, Machine, Rollout, Section

ROOT = Path(__file__).parent.parent
RAW = {"model": {"path": "m"}}


@pytest.mark.parametrize("name", ["atlas", "atlas-sft", "qwen2.5-vl-7b-fvqa"])
def test_every_setting_is_classified(name: str) -> None:
    cfg = config.load(ROOT / "configs" / f"{name}.yaml")
    found = list(leaves(cfg))
    assert len(found) > 120
    assert not [key for key, _, what in found if what is None]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"rollout": {"temperature": 0.5}}, Affects.ROLLOUT),
        ({"protocol": {"top_k": 2}}, Affects.ROLLOUT),
        ({"reward": {"search_penalty": 0.3}}, Affects.ROLLOUT),
        ({"seed": 3}, Affects.ROLLOUT),
        ({"search": {"text": {"spare": 1}}}, Affects.ROLLOUT),
        ({"optimizer": {"lr": 0.5}}, Affects.TRAINING),
        ({"algorithm": {"clip_low": 0.1}}, Affects.TRAINING),
        ({"algorithm": {"logprob_alarm": 0.1}}, Affects.LOGGING),
        ({"alarms": {"steps": 5}}, Affects.LOGGING),
        ({"rollout": {"concurrency": 3}}, Affects.MACHINE),
        ({"rollout": {"tool_timeout_s": 99}}, Affects.MACHINE),
        ({"search": {"text": {"per_second": 3}}}, Affects.MACHINE),
        ({"search": {"budget": {"run_usd": 3}}}, Affects.MACHINE),
        ({"engine": {"sglang": {"mem_fraction_static": 0.5}}}, Affects.MACHINE),
        ({"train": {"steps": 7}}, Affects.MACHINE),
        ({"output": "elsewhere"}, Affects.MACHINE),
        ({"name": "x"}, Affects.LOGGING),
    ],
)
def test_a_change_is_seen_by_whom_it_concerns(changed: dict, kind: Affects) -> None:
    """Two configs differ in exactly the kinds that the changed key is of, for the comparison and for the fingerprint."""
    old, new = parse(RAW), parse(RAW | changed)
    for k in Affects:
        assert bool(differing(old, new, (k,))) == (k is kind)
        assert (fingerprint(old, (k,)) != fingerprint(new, (k,))) == (k is kind)
    assert (fingerprint(old) != fingerprint(new)) == (kind in RESULTS)


def test_the_keys_that_differ_are_named_in_full() -> None:
    old, new = parse(RAW), parse(RAW | {"optimizer": {"lr": 0.5}, "search": {"text": {"spare": 1}}, "train": {"steps": 3}})
    assert differing(old, new) == ["optimizer.lr", "search.text.spare"]


def test_a_part_s_own_settings_are_classified_by_the_field_that_holds_them() -> None:
    class Theirs(Section):
        weight: float = 1.0
        workers: Machine[int] = 2

    class Config(Section):
        part: Rollout[Section] = Theirs()
        parts: Rollout[dict[str, Section]]

    cfg = Config(parts={"mine": Theirs()})
    found = {key: what for key, _, what in leaves(cfg)}
    assert found["part.weight"] is found["parts.mine.weight"] is Affects.ROLLOUT
    assert found["part.workers"] is found["parts.mine.workers"] is Affects.MACHINE


def test_an_unclassified_key_counts_as_every_kind() -> None:
    class Config(Section):
        forgotten: int = 1

    assert all(differing(Config(), Config(forgotten=2), (k,)) == ["forgotten"] for k in Affects)


def test_serving_leaves_out_what_belongs_to_the_machine() -> None:
    assert {"url", "cache", "keys", "budget", "estimate"} <= set(keys_of(config.SearchConfig, Affects.MACHINE))
    assert not {"text", "image", "corpus", "fetch"} & set(keys_of(config.SearchConfig, Affects.MACHINE))


def test_a_kept_config_has_the_fingerprint_of_the_one_that_was_kept() -> None:
    """Defaults are not converted when a config is made, but are when it is read back: 30 and 30.0 are one setting."""
    cfg = config.load(ROOT / "configs" / "atlas.yaml")
    kept = config.parse(yaml.safe_load(config.dump(cfg)))
    assert fingerprint(kept) == fingerprint(cfg)
