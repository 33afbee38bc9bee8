"""One self-contained HTML file, and the short Markdown of the same, from templates.

Whatever a checkpoint, recipe or manifest is called is text to show, never markup: HTML is escaped by the template
engine, Markdown by `as_cell`.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lfm2_export.bench.report import BenchReport
from lfm2_export.parity.report import ParityReport, RuntimeReport
from lfm2_export.report.comparison import Comparison
from lfm2_export.report.formatting import as_cell, as_code, figures, megabytes, number

COMPARISONS = (".html", ".md", ".json")
_MARKS = {"pass": "✅ pass", "fail": "❌ FAIL", "skipped": "⚪ skipped"}


def parity_html(report: ParityReport, bench: BenchReport | None = None) -> str:
    """The whole report as a page. Needs matplotlib."""
    charts = [(runtime, list(_charts(runtime))) for runtime in report.runtimes]
    speeds = list(speed_charts(bench)) if bench else []
    template = templates(autoescape=True).get_template("parity.html.jinja")
    return template.render(r=report, charts=charts, bench=bench, speeds=speeds)


def parity_markdown(report: ParityReport, bench: BenchReport | None = None) -> str:
    """Return the Markdown that fits under a pull request."""
    return templates(autoescape=False).get_template("parity.md.jinja").render(r=report, bench=bench)


def comparison(found: Comparison, suffix: str) -> str:
    """Return two sides in one of the formats `COMPARISONS`."""
    if suffix == ".json":
        return found.model_dump_json(indent=2) + "\n"
    return templates(autoescape=suffix == ".html").get_template(f"compare{suffix}.jinja").render(c=found)


def _charts(runtime: RuntimeReport) -> Iterator[tuple[str, str, Markup]]:
    """(title, what it tells, drawing)."""
    from lfm2_export.plots import page_charts as charts

    details = runtime.details
    if details is None:
        return
    if details.tokens is not None:
        drawn = f" (drawn from {details.tokens.of:,})" if details.tokens.of else ""
        count = f"{len(details.tokens.kld)} teacher-forced tokens{drawn}"
        told = f"{count}, against fp32 eager; the first bar is 1e-9 and less."
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


def speed_charts(bench: BenchReport) -> Iterator[tuple[str, str, Markup]]:
    """Yield (title, what it tells, drawing). Needs matplotlib."""
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


def templates(autoescape: bool) -> Environment:
    """Return the engine of every page, with what figures and names are written by."""
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
