"""What a person sees: one console for results (stdout), one for progress (stderr), and the tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lfm2_export.progress import Progress, silent

if TYPE_CHECKING:
    from lfm2_export.artifact.manifest import Delegation, GateResult
    from lfm2_export.parity.cache import CacheFigures
    from lfm2_export.parity.report import ParityReport
    from lfm2_export.parity.trace_result import Trace
    from lfm2_export.tune.search import Tuning

# without markup: a message may hold square brackets, as in pip install 'lfm2-export[genai]', and loses none of them
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

_MARKS = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "skipped": ("skipped", "yellow")}


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """`stage("…")` names the step under way: a line that changes on a terminal, one timed line per step elsewhere."""
    if quiet:
        yield silent
    elif err.is_terminal:
        from lfm2_export.cli.bar import Bar

        with Bar(err) as bar:
            yield bar
    else:
        started = time.perf_counter()
        yield Progress(lambda text: err.print(f"[{time.perf_counter() - started:5.1f} s] {text}", soft_wrap=True))


def gates_table(gates: list[GateResult], title: str) -> Table:
    """One row per gate: what was measured, against what limit, verdict."""
    table = Table(title=title, title_justify="left")
    for heading in ("runtime", "gate"):
        table.add_column(heading)
    for heading in ("measured", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    previous = None
    for gate in gates:
        measured = "–" if gate.value is None else f"{gate.value:.3g}"
        limit = "–" if gate.limit is None else f"{gate.limit:.3g}"
        verdict = Text.assemble(_MARKS[gate.status], (f" {gate.reason}" if gate.reason else "", "dim"))
        table.add_row("" if gate.runtime == previous else gate.runtime, gate.name, measured, limit, verdict)
        previous = gate.runtime
    return table


def print_report(report: ParityReport) -> None:
    """The parity table, what was measured on, and the verdict."""
    out.print(
        gates_table(report.gates, f"parity of {report.artifact} ({report.recipe}, {megabytes(report.size_bytes)})")
    )
    for runtime in report.runtimes:
        if runtime.status == "skipped":
            out.print(warned("skipped", f" {runtime.runtime}: {runtime.reason}"))
        for note in runtime.notes:
            out.print(f"{runtime.runtime}: {note}")
        if runtime.twin is not None:
            twin = runtime.twin
            out.print(
                f"{runtime.runtime} beside {twin.runtime} on this machine: max error {twin.max_error:.1e}, RMS "
                f"{twin.rms_error:.1e}; median of single steps {twin.median_step:.1e}"
            )
        if runtime.quality is not None:
            loss = runtime.quality
            out.print(
                f"{runtime.quality_of}: on {loss.tokens} tokens of {report.text}: KLD mean {loss.mean_kld:.2g} ± "
                f"{loss.kld_standard_error:.1g}, p99 {loss.p99_kld:.2g} nats; perplexity × {loss.perplexity_ratio:.4f}"
            )
        if runtime.task_accuracy and report.reference_task_accuracy:
            kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in runtime.task_accuracy.items())
            fp32 = f"{report.reference_task_accuracy['all']:.0%}"
            out.print(f"{runtime.quality_of}: nano's questions {kinds} (fp32 eager {fp32})")
    if report.cache is not None:
        out.print(cache_line(report.cache))
    if report.trace is not None:
        out.print(_trace_table(report.trace))
        out.print(f"first divergence: {report.trace.verdict}")
    for delegation in report.delegation:
        out.print(delegation_line(delegation))
    if report.random_weights:
        out.print(warned("random weights", ": quality figures say nothing about a trained model"))
    out.print(report.verdict, style="bold green" if report.passed else "bold red")


def warned(word: str, rest: str) -> Text:
    """Return a line whose first words are yellow."""
    return Text.assemble((word, "yellow"), rest)


def cache_line(cache: CacheFigures) -> str:
    saved = f", {cache.saved_bytes / 1e6:.1f} MB less than in fp32 for a KLD of {cache.mean_kld:.1g}"
    return (
        f"KV cache in {cache.precision}: {cache.bytes_per_token} bytes for each token of the window, "
        f"{cache.window_bytes / 1e6:.1f} MB for {cache.window}{saved if cache.saved_bytes else ''}; "
        f"conv states {cache.conv_bytes / 1e3:.0f} kB"
    )


def _trace_table(trace: Trace) -> Table:
    """The points around the culprit, or those with the largest errors of their own."""
    table = Table(title=f"trace through {trace.runtime}, tolerance {trace.tolerance:.2g}", title_justify="left")
    for heading in ("layer", "operation"):
        table.add_column(heading)
    for heading in ("own error", "median token", "accumulated"):
        table.add_column(heading, justify="right")
    if trace.first is not None:
        chosen = list(range(max(0, trace.first - 4), min(len(trace.points), trace.first + 5)))
    else:
        ranked = sorted(range(len(trace.points)), key=lambda number: -(trace.points[number].own or 0.0))
        chosen = sorted(ranked[:8])
    for number in chosen:
        point = trace.points[number]
        own, typical = ("–" if each is None else f"{each:.2g}" for each in (point.own, point.typical))
        style = "bold red" if number == trace.first else None
        layer = "–" if point.layer is None else str(point.layer)
        table.add_row(layer, point.operation, own, typical, f"{point.accumulated:.2g}", style=style)
    return table


def delegation_line(delegation: Delegation) -> str:
    outside = ", ".join(f"{name} × {count}" for name, count in delegation.fallback.items()) or "nothing"
    cuts = f", cut into {delegation.cuts + 1} shards" if delegation.cuts else ""
    return (
        f"{delegation.backend}: {delegation.delegated} operators in {delegation.calls} delegate calls; "
        f"outside the delegate: {outside}{cuts}"
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def print_json(document: str) -> None:
    """Exactly one JSON document on stdout."""
    sys.stdout.write(document + "\n")


def print_tuning(tuning: Tuning) -> None:
    """The most sensitive modules, the Pareto front, and the choice."""
    costly = sorted(tuning.modules.items(), key=lambda named: -max(named[1].values()))[:8]
    table = Table(title=f"KLD with one module alone quantized, worst 8 of {len(tuning.modules)}", title_justify="left")
    table.add_column("module")
    table.add_column("nats per token")
    for path, costs in costly:
        table.add_row(path, ", ".join(f"{option} {cost:.1e}" for option, cost in costs.items()))
    out.print(table)
    table = Table(title="best for its size", title_justify="left")
    for heading in ("MB", "MB read per token", "KLD (sum)"):
        table.add_column(heading, justify="right")
    table.add_column("modules")
    for point in tuning.front:
        sizes = (f"{each / 1e6:.2f}" for each in (point.stored_bytes, point.read_bytes))
        counts = ", ".join(f"{count} {option}" for option, count in point.options.items())
        table.add_row(*sizes, f"{point.predicted_kld:.2g}", counts)
    out.print(table)
    chosen = tuning.chosen
    out.print(
        f"chosen: {chosen.stored_bytes / 1e6:.2f} MB, KLD {chosen.predicted_kld:.2g} as a sum, "
        f"{tuning.measured_kld:.2g} measured whole on {tuning.tokens} tokens (rounded to nearest; "
        "`export --weights gptq` loses less)"
    )
