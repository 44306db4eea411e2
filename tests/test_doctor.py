"""The doctor's checks on real files, a real all-reduce and real accounts; and what becomes of their findings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import qwen2_vl_fixtures
from doctor_tasks import alone, by_name, config, together

from megatron_mmsr1.cli import entry as cli
from megatron_mmsr1.doctor import examine, show
from megatron_mmsr1.doctor.check import Finding, Level, Place
from megatron_mmsr1.doctor.checks import NAMES, allreduce, attention, clock, disk, shared
from megatron_mmsr1.doctor.examine import Found
from megatron_mmsr1.doctor.tasks import Tasks
from megatron_mmsr1.errors import RunError

ROOT = Path(__file__).parent.parent
COLD_START = ROOT / "megatron_mmsr1/atlas/checkpoints/tilted"


# -------------------------------------------------------------------------------------------------------------------- tasks
def test_tasks_know_their_nodes_and_gather_in_their_order() -> None:
    nodes = ("b", "a", "b", "a", "c")
    found = together(lambda t: (t.rank, t.firsts, t.here, t.gather("x", t.rank**2)), nodes)
    assert found == [(r, [0, 1, 4], nodes.count(n), [0, 1, 4, 9, 16]) for r, n in enumerate(nodes)]


def test_tasks_that_do_not_come_are_named() -> None:
    def act(tasks: Tasks) -> str:
        if tasks.rank == 1:
            return ""
        with pytest.raises(RunError) as e:
            tasks.gather("here", True, within_s=0.05)
        return str(e.value)

    said = together(act, ("a", "b", "c"))
    assert all("did not come to 'here' within 0.05 s" in s for s in (said[0], said[2])) and "[1" in said[0]


# --------------------------------------------------------------------------------------------------------------------- disk
@pytest.mark.long
def test_the_disk_is_measured_where_the_run_will_write_and_nothing_is_left(tmp_path: Path) -> None:
    found = by_name(alone(disk.run, config(tmp_path / "runs" / "new")))
    assert found["directory"].data["path"] == str(tmp_path)
    write, read, small = (found[n].data for n in ("write", "read", "small files"))
    assert write["mb_s"] > 0 and read["mb_s"] > 0 and write["bytes"] == read["bytes"] >= disk.BLOCK
    assert 0 < small["p50_ms"] <= small["p99_ms"]
    assert found["hard links"].level is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_is_the_nearest_rank() -> None:
    assert [disk.percentile(range(1, 101), p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert disk.percentile([3.0, 1.0, 2.0], 50) == 2.0 and disk.percentile([7.0], 99) == 7.0


def test_a_directory_that_cannot_be_written_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: m}\n")
    assert cli.main(["doctor", str(file), "output=/proc/runs/x", "--only", "disk", "--json"]) == 1
    done = capsys.readouterr()
    (row,) = json.loads(done.out)["findings"]
    assert (row["check"], row["level"]) == ("disk", "error") and "/proc" in row["advice"]
    assert "the doctor found 1 error: disk on" in done.err


# ------------------------------------------------------------------------------------------------------------ between nodes
def test_nodes_that_share_a_directory_see_each_other_s_files(tmp_path: Path) -> None:
    def act(tasks: Tasks) -> list[Finding]:
        return shared.run(Place(tasks, config(tmp_path))) if tasks.rank in tasks.firsts else []

    found = together(act, ("n1", "n2", "n1", "n3"))
    assert [set(f.data["ms"]) for (f,) in (found[0], found[1], found[3])] == [{"n2", "n3"}, {"n1", "n3"}, {"n1", "n2"}]
    assert all(f.level is Level.OK for (f,) in (found[0], found[1], found[3]))
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_share_none_are_an_error(tmp_path: Path) -> None:
    def act(tasks: Tasks) -> list[Finding]:
        own = tmp_path / tasks.node
        own.mkdir()
        return shared.run(Place(tasks, config(own)), wait_s=0.05)

    for (finding,), other in zip(together(act), ("n2", "n1"), strict=True):
        assert finding.level is Level.ERROR and finding.value.endswith(f"does not show the files of {other}")
        assert "same path" in finding.advice


def test_one_clock_has_no_skew() -> None:
    first, second, third = together(lambda t: clock.run(Place(t)), ("n1", "n2", "n3"))
    assert first == []
    for (finding,) in (second, third):
        assert abs(finding.data["offset_s"]) <= finding.data["error_s"] + 1e-9  # the rounding of a division
        assert finding.level is Level.OK and "against n1" in finding.value


@pytest.mark.parametrize(("offset", "error", "level"), [(2.0, 0.1, "warning"), (-2.0, 0.1, "warning"), (1.05, 0.1, "ok")])
def test_a_skew_counts_beyond_its_error(offset: float, error: float, level: str) -> None:
    finding = clock._finding(offset, error, "n1")
    assert finding.level == level and bool(finding.advice) == (level == "warning")


@pytest.mark.parametrize("check", [shared, clock])
def test_one_node_has_nobody_to_compare_with(check: Any, tmp_path: Path) -> None:
    assert alone(check.run, config(tmp_path)) == []


def row(node: str, what: str, value: str) -> Found:
    return Found(node, "machine", Finding(what, value, alike=True))


def test_what_differs_between_nodes_is_an_error() -> None:
    rows = [row(n, "torch", v) for n, v in (("n1", "2.13"), ("n2", "2.12"), ("n3", "2.13"))]
    rows += [row(n, "driver", "580") for n in ("n1", "n2", "n3")]
    rows += [Found(n, "disk", Finding("write", n)) for n in ("n1", "n2", "n3")]  # may differ
    (found,) = examine.differences(rows)
    assert (found.node, found.check, found.finding.what) == ("", "machine", "torch")
    assert found.finding.value == "2.13 on n1, n3; 2.12 on n2" and found.finding.level is Level.ERROR


# --------------------------------------------------------------------------------------------------------------- all-reduce
@pytest.mark.process
def test_two_processes_reduce_and_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over the GPUs of one machine; without any they are two all the same, over gloo."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = allreduce.over_processes(2)
    assert [f.data["bytes"] for f in found] == list(allreduce.SIZES["gloo"])
    assert all(f.data["bus_gb_s"] > 0 and f.data["tasks"] == 2 and f.data["backend"] == "gloo" for f in found)


def test_bus_bandwidth_is_nccl_tests_own() -> None:
    """A gigabyte in a second over four: 2 * 3 / 4 GB/s. NCCL below 5 GB/s at the largest size is told."""
    four = together(lambda t: t, ("n1", "n1", "n2", "n2"))[0]
    small, large = allreduce._findings("nccl", four, {2**20: 1e-3, 10**9: 1.0})
    assert large.data["bus_gb_s"] == pytest.approx(1.5) and "4 tasks on 2 nodes" in large.value
    assert small.data["bus_gb_s"] == pytest.approx(1.5 * 2**20 / 1e6)
    assert (small.level, large.level) == (Level.OK, Level.WARNING) and "NCCL_DEBUG" in large.advice
    assert all(f.level is Level.OK for f in allreduce._findings("gloo", four, {10**9: 1.0}))


def test_one_process_without_a_gpu_has_nothing_to_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (finding,) = alone(allreduce.run)
    assert finding.level is Level.OK and "not run" in finding.value


def test_findings_are_read_among_other_lines() -> None:
    rows = [Found("n1", "allreduce", Finding("1 MiB", "fast", Level.WARNING, "look", data={"bytes": 1})).plain()]
    said = f"{{not JSON\nNCCL INFO\n{json.dumps({'level': 'warning', 'findings': rows}, indent=1)}\nbye\n"
    assert allreduce.read(said) == [Finding("1 MiB", "fast", Level.WARNING, "look", data={"bytes": 1})]
    assert allreduce.read("nothing\n{}\n") is None


# ---------------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.process
def test_the_model_s_own_attention_is_run(family: str, tmp_path: Path) -> None:
    """Also of a family that megatron-bridge does not know by itself."""
    path = COLD_START if family == "qwen2_5_vl" else qwen2_vl_fixtures.write(tmp_path / "model")
    model = {"path": str(path), "dtype": "float32"}
    cfg = config(tmp_path, model=model, megatron={"tensor_parallel": 2}, train={"ranks": 2})
    kernel, kernels, difference = alone(attention.run, cfg)
    assert kernel.level is Level.OK and kernel.value.startswith("padded (")
    assert difference.level is Level.OK, difference
    assert 0 < max(difference.data.values()) < attention.TOLERANCE["float32"]
    if kernels.data["device"] == "cpu":
        assert kernels.data["layer"] == "PackedAttention"
        assert kernels.data["kernels"] == ["aten::_scaled_dot_product_flash_attention_for_cpu"]


@pytest.mark.process
def test_a_model_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"does not run here: .*models/none"):
        alone(attention.run, config(tmp_path))


@pytest.mark.parametrize(("error", "gradient"), [(0.5, 0.0), (0.0, 0.5), (math.nan, 0.0), (0.0, math.nan)])
def test_a_kernel_that_is_wrong_is_an_error(error: float, gradient: float) -> None:
    said = {"choice": "c", "slow": False, "layer": "L", "kernels": ["k"], "dtype": "bfloat16", "device": "x"}
    _, _, found = attention.findings(said | {"error": error, "gradient_error": gradient})
    assert found.level is Level.ERROR and json.dumps(dict(found.data), allow_nan=False)


# -------------------------------------------------------------------------------------------------------------- the command
def test_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--only", "machine"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "cores", "GPUs", "megatron-core", "sgl_kernel", "attention", "patches", "0 errors"):
        assert word in out
    assert cli.main(["doctor", "--only", "machine", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["level"] in ("ok", "warning") and {r["check"] for r in said["findings"]} == {"machine"}
    assert said["findings"][0]["data"]["packages"]["torch"]


def test_every_check_is_found_by_its_name_and_a_failing_one_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = {name: examine.check(name) for name in NAMES}
    assert all(c.about for c in checks.values())

    def broken(place: Place) -> list[Finding]:
        raise KeyError("gone")

    monkeypatch.setattr(allreduce, "CHECK", type(allreduce.CHECK)("x", allreduce.CHECK.who, broken))
    monkeypatch.chdir(tmp_path)
    rows = examine.examine(None, ("allreduce", "disk"))
    assert rows is not None and {r.check for r in rows} == {"allreduce", "disk"}
    (failed,) = [r.finding for r in rows if r.finding.level is Level.ERROR]
    assert (failed.value, failed.advice) == ("failed", "KeyError: 'gone'")


def test_the_table_goes_node_by_node_with_the_advice_below() -> None:
    rows = [row("n1", "torch", "1"), Found("n1", "disk", Finding("write", "1 MB/s", Level.WARNING, "a faster one"))]
    rows += [row("n2", "torch", "2"), *examine.differences([row("n1", "torch", "1"), row("n2", "torch", "2")])]
    lines = show.table(rows).splitlines()
    assert [line for line in lines if line in ("n1", "n2", "between nodes")] == ["n1", "n2", "between nodes"]
    at = next(i for i, line in enumerate(lines) if line.startswith("warning"))
    assert lines[at].endswith("1 MB/s") and lines[at + 1].strip() == "a faster one"
    assert lines[-1] == "1 errors, 1 warnings, 2 ok"
