"""`mmsr1 report RUN [RUN ...]`: a run, or several beside each other, as one self-contained HTML page.

Everything in it is inline (pictures as base64, numbers as JSON, one script of ours that draws them); it asks nothing of any
network (its content security policy forbids it, and any other script), and every text that a model, a page or a question wrote
is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.config.affects import RESULTS, differing
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.report.curves import Line, page_data
from megatron_mmsr1.report.examples import Example, choose
from megatron_mmsr1.report.gather import RunData, gather, labels

__all__ = ["Example", "RunData", "build", "report"]

EXAMPLES, AT_LEAST = 10, 3  # conversations of a page; of each run
# What runs of one experiment may differ in: the seed, and the world that was drawn from it.
OF_A_SEED = {"seed", "data.train", "data.heldout", "search.corpus"}


def report(runs: str | Path | Sequence[str | Path], out: Path | None = None, *, seeds: bool = False) -> Path:
    """Write the page and return its path: `out`, else RUN/report.html, of several runs compare.html in the first one.

    `seeds`: the runs are one experiment with several seeds, drawn as mean and spread. UsageError if they differ in more than
    that, or if a directory is no run; RunError for a damaged file.
    """
    directories = [Path(runs)] if isinstance(runs, str | Path) else [Path(r) for r in runs]
    target = out or directories[0] / ("report.html" if len(directories) == 1 else "compare.html")
    write_text(target, build(directories, seeds=seeds))
    return target


def build(directories: Sequence[Path], *, seeds: bool = False, live: bool = False) -> str:
    """The page of these runs. Raises as `report` does."""
    from megatron_mmsr1.report.page import render

    runs = [gather(d) for d in directories]
    for data, label in zip(runs, labels([d.directory for d in runs]), strict=True):
        data.label = label
    each = max(AT_LEAST, EXAMPLES // len(runs))
    return render(runs, page_data(lines(runs, seeds=seeds)), [e for d in runs for e in choose(d, each)], live=live)


def lines(runs: Sequence[RunData], *, seeds: bool) -> list[Line]:
    """A line a run, or one for all of them."""
    if not seeds or len(runs) == 1:
        return [Line(d.label, [d.metrics], [d.results]) for d in runs]
    for d in runs[1:]:
        if more := set(differing(runs[0].cfg, d.cfg, RESULTS)) - OF_A_SEED:
            raise UsageError(
                f"--seeds: {d.directory} differs from {runs[0].directory} in more than its seed: {', '.join(sorted(more))}. "
                "Leave --seeds out to have a line a run"
            )
    return [Line(f"{len(runs)} seeds", [d.metrics for d in runs], [d.results for d in runs])]
