"""`mmsr1 report RUN`: a run as one self-contained HTML page.

Everything in it is inline (pictures as base64, plots as SVG); it has no script, asks nothing of any network (its content
security policy forbids it), and every text that a model, a page or a question wrote is escaped.
"""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.report.examples import Example, choose
from megatron_mmsr1.report.gather import RunData, gather
from megatron_mmsr1.report.plots import plots

__all__ = ["Example", "RunData", "report"]

EXAMPLES = 10


def report(run_directory: str | Path) -> Path:
    """Write RUN/report.html and return its path. Raises UsageError if the directory is no run, RunError for a damaged file."""
    from megatron_mmsr1.report.page import render

    data = gather(Path(run_directory))
    html = render(data, plots(data.metrics), choose(data, EXAMPLES))
    target = data.directory / "report.html"
    write_text(target, html)
    return target
