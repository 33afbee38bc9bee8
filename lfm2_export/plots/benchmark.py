"""A benchmark as a picture: decode speed by context, prefill speed by length, and what a decode step is spent on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lfm2_export.bench.report import BenchReport, ContenderReport, Speed
from lfm2_export.bench.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(report: BenchReport) -> Figure:
    """Draw two panels and a legend; below them the stages of a decode step, if any contender's are known."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    profiled = [contender for contender in report.contenders if contender.stages]
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        drawing = Figure(figsize=(10, 4.8 + (1.2 + 0.3 * len(profiled) if profiled else 0)), layout="constrained")
        heights = (12, 3 + len(profiled)) if profiled else (1,)
        speeds, *below = drawing.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        left, right = speeds.subplots(1, 2)
        _panel(left, report, lambda contender: contender.decode, "decode", "context (tokens)")
        _panel(right, report, lambda contender: contender.prefill, "prefill", "prompt (tokens)")
        drawing.suptitle(_title(report), fontsize="medium")
        speeds.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
        for area in below:
            _stages(area.subplots(), profiled)
        return drawing


def _stages(axes: Axes, profiled: list[ContenderReport]) -> None:
    """A bar per contender, cut into its stages."""
    names = [contender.name for contender in profiled]
    reached = [0.0] * len(profiled)
    for stage in STAGES:
        widths = [100 * (contender.stages or {})[stage] for contender in profiled]
        axes.barh(names, widths, left=reached, label=stage)
        reached = [sum(pair) for pair in zip(reached, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the operators' time")
    axes.set_title("a decode step at the longest context")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def _panel(
    axes: Axes, report: BenchReport, speeds: Callable[[ContenderReport], list[Speed]], title: str, unit: str
) -> None:
    """Medians as a line, extremes as bars; a contender without a single point still has its legend entry."""
    for contender in report.contenders:
        points = [(each.tokens, each.tokens_per_second) for each in speeds(contender) if each.tokens_per_second]
        medians = [spread.median for _, spread in points]
        below = [spread.median - spread.min for _, spread in points]
        above = [spread.max - spread.median for _, spread in points]
        axes.errorbar(
            [tokens for tokens, _ in points], medians, yerr=(below, above), marker="o", capsize=3, label=contender.name
        )
    ticks = [speed.tokens for speed in speeds(report.contenders[0])]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_ylabel("tokens per second")


def _title(report: BenchReport) -> str:
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    weights = "; random weights" if report.random_weights else ""
    return f"{report.machine['processor']}; {threads}, median of {report.rounds} rounds{weights}"
