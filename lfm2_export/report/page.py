"""One self-contained HTML file, and the short Markdown of the same, from templates.

Whatever a checkpoint, recipe or manifest is called is text to show, never markup: HTML is escaped by the template
engine, Markdown by `as_cell`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lfm2_export.bench.report import BenchReport
from lfm2_export.parity.report import ParityReport, RuntimeReport

if TYPE_CHECKING:
    from lfm2_export.report.compare import Comparison

_LABELS = {
    "tokens": "tokens",
    "mean_kld": "KLD mean (nats)",
    "kld_standard_error": "its standard error",
    "median_kld": "KLD median",
    "p99_kld": "KLD 99th percentile",
    "max_kld": "KLD largest",
    "top1": "same most likely token",
    "top5": "five most likely in common",
    "perplexity_ratio": "perplexity ratio",
    "clear_flips": "clear choices that flipped",
    "flip_margin": "margin where it flipped (nats)",
}
COMPARISONS = (".html", ".md", ".json")
_MARKS = {"pass": "✅ pass", "fail": "❌ FAIL", "skipped": "⚪ skipped"}


def parity_html(report: ParityReport, bench: BenchReport | None = None) -> str:
    """The whole report as a page. Needs matplotlib."""
    charts = [(runtime, list(_charts(runtime))) for runtime in report.runtimes]
    speeds = list(_speed_charts(bench)) if bench else []
    template = _environment(autoescape=True).get_template("parity.html.jinja")
    return template.render(r=report, charts=charts, bench=bench, speeds=speeds)


def parity_markdown(report: ParityReport, bench: BenchReport | None = None) -> str:
    """What fits under a pull request."""
    return _environment(autoescape=False).get_template("parity.md.jinja").render(r=report, bench=bench)


def comparison(found: Comparison, suffix: str) -> str:
    """Two sides as one of `COMPARISONS`."""
    if suffix == ".json":
        return found.model_dump_json(indent=2) + "\n"
    return _environment(autoescape=suffix == ".html").get_template(f"compare{suffix}.jinja").render(c=found)


def figures(loss: Any) -> list[tuple[str, str]]:
    """(label, value) of everything that is known of a quantization loss."""
    known = vars(loss)
    return [(label, number(known[name])) for name, label in _LABELS.items() if known.get(name) is not None]


def number(value: Any) -> str:
    """Three significant digits; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def as_cell(value: object) -> str:
    """Text for a Markdown table: no markup, no line break, no end of the cell."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!@])", r"\\\1", text)


def as_code(value: object) -> str:
    """Text for a fenced block, which it cannot end."""
    return str(value).replace("```", "'''")


def _charts(runtime: RuntimeReport) -> Iterator[tuple[str, str, Markup]]:
    """(title, what it tells, drawing)."""
    from lfm2_export.plots import page_charts as charts

    details = runtime.details
    if details is None:
        return
    if details.tokens is not None:
        told = f"{len(details.tokens.kld)} teacher-forced tokens, against fp32 eager; the first bar is 1e-9 and less."
        yield "Divergence per token", told, Markup(charts.kld_histogram(details.tokens))
        told = "Mean and largest by the number of tokens before it: a decaying state would show as a slope."
        yield "Divergence by position", told, Markup(charts.kld_by_position(details.tokens))
    if any(each.lowering is not None or each.quantization is not None for each in details.layers):
        told = "Where did it start? Each layer's error; a jump names the layer, a slope is rounding that adds up."
        yield "Error by layer", told, Markup(charts.error_by_layer(details.layers))
    if details.drift is not None:
        drift = details.drift
        short = f", of {drift.asked:,} asked: {drift.reason}" if drift.reason else ""
        told = f"{drift.steps:,} decode steps{short}; the worst layer, against {runtime.reference} on the same tokens."
        yield "Drift of the state", told, Markup(charts.state_drift(drift))


def _speed_charts(bench: BenchReport) -> Iterator[tuple[str, str, Markup]]:
    """(title, what it tells, drawing)."""
    from lfm2_export.plots import page_charts as charts

    decode = [(contender.name, contender.decode) for contender in bench.contenders]
    prefill = [(contender.name, contender.prefill) for contender in bench.contenders]
    for title, speeds, told, x in (
        ("Decode speed", decode, "Single tokens after so many. ", "context (tokens)"),
        ("Prefill speed", prefill, "A whole prompt of that length. ", "prompt (tokens)"),
    ):
        if any(each.tokens_per_second for _, points in speeds for each in points):
            told += f"Medians of {bench.rounds} rounds, and bars from the slowest to the fastest sample."
            yield title, told, Markup(charts.speed(speeds, f"{title} by {x.partition(' ')[0]}", x))


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("lfm2_export.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "megabytes": megabytes, "figures": figures}
    environment.filters |= {"cell": as_cell, "code": as_code, "mark": _MARKS.__getitem__}
    return environment
