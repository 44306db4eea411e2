"""The GPU check (benchmarks/gpu) end to end on the CPU with tiny models, and what its runner does where a part cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import flops, parts, runner, shapes
from benchmarks.gpu.parts import PARTS, PartSpec
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs import patches

ROOT = Path(__file__).parent.parent
MMSR1 = [sys.executable, "-m", "megatron_mmsr1.cli"]
FACTS = {"commit", "date", "machine", "packages", "cuda"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a tiny run on the CPU leaves, by part."""
    out = tmp_path_factory.mktemp("gpu")
    command = [*MMSR1, "bench", "gpu", "--tiny", "--device", "cpu", "--out", str(out), "--budget", "3000"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--commit", "abc"], capture_output=True, text=True, check=False, env=env, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return {f.stem: json.loads(f.read_text()) for f in out.glob("*.json")}


def test_every_part_leaves_a_result_with_its_provenance(results: dict[str, dict[str, Any]]) -> None:
    assert results.keys() == {p.name for p in PARTS}
    for name, r in results.items():
        assert r["status"] == "ok" and not r["reasons"] and r["rows"] and r.keys() >= FACTS, name
        assert r["commit"] == "abc" and r["packages"]["torch"] and r["machine"]["python"]


def test_the_cpu_agrees_with_itself_to_the_bit_and_bfloat16_drifts(results: dict[str, dict[str, Any]]) -> None:
    errors = {(r["dtype"], r["what"]): r["relative_error"] for r in results["parity"]["rows"]}
    assert all(e == 0 for (dtype, _), e in errors.items() if dtype == "float32") and len(errors) == 8
    assert all(e > 0 for (dtype, _), e in errors.items() if dtype == "bfloat16")
    gradients = [r for r in results["parity"]["rows"] if r["what"] == "gradients"]
    assert all(r["tensors"] > 50 and not r["only_in_one"] for r in gradients), "tower and language model alike"


def test_each_kernel_that_is_here_is_compared(results: dict[str, dict[str, Any]]) -> None:
    rows = {(r["kernel"], r["sequences"]): r for r in results["attention"]["rows"]}
    assert rows.keys() == {("padded", "whole"), ("padded", "shared")}
    assert all(0 < max(r["output"], r["gradients"]) < 1e-5 for r in rows.values()), "float32"
    assert all(any(s.startswith(n) for s in results["attention"]["skipped"]) for n in ("transformer-engine", "varlen", "flex"))


def test_moments_in_other_places_are_updated(results: dict[str, dict[str, Any]]) -> None:
    rows = {r["moments"]: r for r in results["optimizer"]["rows"]}
    assert len(rows) == 4 and all(r["seconds"] > 0 for r in rows.values()), "that bits agree is the part's own check"


def test_what_a_group_begins_with_is_computed_once(results: dict[str, dict[str, Any]]) -> None:
    rows = [r for r in results["prefixes"]["rows"] if r["way"] == "ratio"]
    assert len(rows) == 2 and all(r["tokens"] > 2 and r["operations"] > 2 for r in rows)


def test_mfu_covers_every_case_and_recompute_changes_no_result(results: dict[str, dict[str, Any]]) -> None:
    rows = [r for r in results["mfu"]["rows"] if "attention" in r]
    cases = {(r["shape"], r["attention"], r["recompute"], r["tokens"]) for r in rows}
    assert len(cases) == len(rows) == len(shapes.NAMES) * 3 * 4 * 2
    assert not [r for r in rows if "error" in r]
    for r in rows:
        assert r["seconds"] > r["optimizer_seconds"] > 0
        same = next(o for o in rows if (o["shape"], o["tokens"]) == (r["shape"], r["tokens"]))
        assert r["grad_norm"] == pytest.approx(same["grad_norm"], rel=0.02), "another kernel, not another model (bfloat16)"
        assert "mfu" not in r, "this processor has no peak in the table"


def test_the_head_agrees_with_whole_logits(results: dict[str, dict[str, Any]]) -> None:
    ways = {r["way"]: r["largest_difference"] for r in results["head"]["rows"]}
    assert ways["naive"] == 0 and len(ways) == 3 and max(ways.values()) < 1e-4


def test_what_the_receiver_holds_is_what_was_sent(results: dict[str, dict[str, Any]]) -> None:
    rows = {r["what"]: r for r in results["transport"]["rows"]}
    assert rows["first update"]["arrived"] and rows["second update"]["arrived"]
    # A tiny model of 0.2 million bfloat16 parameters, and its embeddings are tied: every weight goes once.
    built = next(r for r in results["mfu"]["rows"] if r.get("what") == "built" and r["shape"] == shapes.NAMES[0])
    assert rows["export alone"]["bytes"] == 2 * built["parameters"]


def test_the_profile_adds_up(results: dict[str, dict[str, Any]]) -> None:
    step, *kernels = results["profile"]["rows"]
    assert sum(k["share"] for k in kernels) <= 1 and kernels[0]["share"] == max(k["share"] for k in kernels)
    assert step["kernels"] >= len(kernels) > 10


def test_every_module_of_the_trainer_is_imported(results: dict[str, dict[str, Any]]) -> None:
    rows = {r["name"]: r for r in results["imports"]["rows"] if r["kind"] == "module"}
    assert all(r["there"] for r in rows.values()) and {"megatron_mmsr1.megatron.actor", "megatron_mmsr1.train"} <= rows.keys()


# ----------------------------------------------------------------------------------------------------------- the runner
PART = """
import os, time
def run(job):
    job.row(n=1)
    {rest}
"""


@pytest.fixture
def parts_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[runner.Result]]:
    """Runs parts of these bodies, each with a share of the budget."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(tmp_path)

    def run(
        *bodies: str, share: float = 0.5, budget_s: float = 600, needs: dict[str, str] | None = None
    ) -> list[runner.Result]:
        home = tmp_path / "benchmarks" / "gpu"
        home.mkdir(parents=True)
        for i, body in enumerate(bodies):
            (home / f"part{i}.py").write_text(PART.format(rest=body))
        specs = [PartSpec(f"part{i}", share, 1, needs or {}) for i in range(len(bodies))]
        monkeypatch.setattr(runner, "PARTS", specs)
        return runner.check("cpu", tiny=True, out=tmp_path / "out", budget_s=budget_s, only=[])

    return run


@pytest.mark.process
def test_a_missing_package_skips_its_part_by_name(parts_of: Any, tmp_path: Path) -> None:
    (found,) = parts_of("pass", needs={"no_such_module": "no-such-package", "no.such": "neither"})
    assert found.status == "skipped" and "neither, no-such-package" in found.reasons[0]
    assert json.loads((tmp_path / "out" / "part0.json").read_text())["commit"]


@pytest.mark.process
def test_a_part_that_does_not_fit_is_skipped_by_name(parts_of: Any) -> None:
    (found,) = parts_of("pass", budget_s=0.5)
    assert found.status == "skipped" and "wants at least 1 s" in found.reasons[0]


@pytest.mark.process
def test_a_part_is_ended_at_its_deadline_and_the_next_one_runs(parts_of: Any) -> None:
    ended, second = parts_of("if not job.row(n=2): time.sleep(3600)", "pass", share=0.01)
    assert ended.status == "failed" and "deadline" in ended.reasons[0] and [r["n"] for r in ended.rows] == [1, 2]
    assert second.status == "ok" and second.rows == [{"n": 1}]


@pytest.mark.process
def test_a_part_that_fails_is_told_and_the_next_one_runs(parts_of: Any) -> None:
    bodies = ("raise KeyError('a thing')", "os._exit(3)", "job.fault('wrong'); job.skipped('that')", "pass")
    raised, died, wrong, well = parts_of(*bodies)
    assert "KeyError: 'a thing'" in raised.reasons[0] and "part0.py:5 run" in raised.reasons[0]
    assert str(ROOT) not in raised.reasons[0], "results are committed: no path of a machine"
    assert "exit code 3" in died.reasons[0]
    assert wrong.reasons == ["wrong"] and wrong.skipped == ["that"]
    assert [r.status for r in (raised, died, wrong, well)] == ["failed"] * 3 + ["ok"]
    assert all(r.rows == [{"n": 1}] for r in (raised, died, wrong, well))


@pytest.mark.process
def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no CUDA device"):
        runner.check("cuda", tiny=True, out=tmp_path, budget_s=3000, only=["head"])
    with pytest.raises(UsageError, match="no part heads"):
        runner.check("cpu", tiny=True, out=tmp_path, budget_s=3000, only=["heads"])


def test_the_shares_fill_the_budget() -> None:
    assert sum(p.share for p in PARTS) == pytest.approx(1)
    assert all(spec.missing() == [] for spec in parts.PARTS)


# ----------------------------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize(
    ("shape", "billions"),
    # What Qwen2.5-3B's and Qwen2-1.5B's model cards say of their parameters without embeddings.
    [("qwen2_5_vl_3b", 2.77), ("qwen2_vl_2b", 1.31)],
)
def test_the_weights_of_the_formula(shape: str, billions: float) -> None:
    text = json.loads((ROOT / "benchmarks" / "gpu" / "shapes" / f"{shape}.json").read_text())["text_config"]
    assert flops.matrix_weights(text) / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_operations_of_a_step_by_hand() -> None:
    """One layer, h = 4, two heads of 2, one for keys and values, feed-forward 3, vocabulary 5; sequences of 2 and 4 tokens, of
    which 3 are scored. Weights: 4 * 4 (q) + 2 * 4 * 2 (k, v) + 4 * 4 (out) + 3 * 4 * 3 = 84. Forward: 2 * 84 * 6 = 1008;
    attention 2 * 4 * (4 + 16) = 160; head 2 * 5 * 4 * 3 = 120. Three times that: 3864."""
    text = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 3}
    text |= {"num_hidden_layers": 1, "vocab_size": 5}
    assert flops.matrix_weights(text) == 84
    assert flops.train_step(text, [2, 4], 3) == 3864


def test_only_gpus_whose_peak_is_known_have_one() -> None:
    assert flops.peak("NVIDIA H200") == 989e12 and flops.peak("NVIDIA H100 PCIe") is None


# ----------------------------------------------------------------------------------------------------------- the patches
def test_another_version_is_refused_unless_a_check_accepts_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    p = dataclasses.replace(patches.PATCHES[0], version="0.1.0")
    monkeypatch.setitem(patches._BY_NAME, p.name, p)
    monkeypatch.setattr(patches, "_ACCEPTED", set())
    with pytest.raises(RunError, match=r"0\.1\.0"):
        patches.check(p.name)
    patches.accept(p.name)
    patches.check(p.name)
    assert f"changes internals of {p.package} 0.1.0" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ the script
def test_the_wheels_that_it_collects_are_in_the_lock() -> None:
    script = (ROOT / "scripts" / "gpu_check.sh").read_text()
    names = script.partition('packages="')[2].partition('"')[0].split()
    lock = (ROOT / "requirements.lock").read_text()
    assert len(names) > 8 and all(f"\n{name}==" in f"\n{lock}" for name in names)


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--wheels", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no wheels" in done.stderr
