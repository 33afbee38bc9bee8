"""`lfm2-export bench`: how fast an artifact is here, alone or beside others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lfm2_export.bench.drafted import Drafted
    from lfm2_export.bench.report import BenchReport, ContenderReport, Speed
    from lfm2_export.evaluate.metrics import QuantizationLoss

NAME = "bench"


def run(
    artifact: Annotated[str, typer.Argument(help="Artifact folder (or anything that --vs takes).")],
    against: Annotated[
        list[str] | None,
        typer.Option("--vs", help="Another artifact, a .gguf, a stock LLM .pte, or eager:CHECKPOINT (repeatable)."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Run ARTIFACT by this runtime, such as native or onnxruntime-cuda (repeatable). [its own]"),
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Measure a reply with drafts too: lookup, or a smaller model's artifact.")
    ] = None,
    contexts: Annotated[str, typer.Option(help="Decode at these contexts, in tokens.")] = "128,1024",
    prefill: Annotated[str, typer.Option(help="Prefill prompts of these lengths, in tokens.")] = "128,512",
    threads: Annotated[int | None, typer.Option(help="Threads, and cores to run them on. [all]")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender, one after the other.")] = 3,
    text: Annotated[
        Path | None, typer.Option(help="Hold all against fp32 on this UTF-8 text too: KLD beside tokens per second.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="For --text: what they were made from; found by itself for nano and the hub.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it into this .png or .svg.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plot.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure decode and prefill speed, load time, memory and size, in processes of their own."""
    from lfm2_export.bench.loss import held_out
    from lfm2_export.bench.rounds import bench
    from lfm2_export.bench.spec import drafting, parse, through
    from lfm2_export.cli import console
    from lfm2_export.errors import UsageError
    from lfm2_export.plots import benchmark, files

    lengths = _numbers("--contexts", contexts), _numbers("--prefill", prefill)
    if plot is not None:
        files.check(plot, force)
    if checkpoint is not None and text is None:
        raise UsageError("--checkpoint is what --text is measured against; there is no --text")
    with console.progress(quiet) as progress:
        progress("checking the contenders")
        first = parse(artifact)
        specs = [through(first, name) for name in runtime or ()] or [first]
        specs = [drafting(spec, draft) for spec in specs] if draft else specs
        specs += [parse(text) for text in against or ()]
        judged = held_out(text, specs, checkpoint) if text else None
        report = bench(specs, *lengths, threads=threads, rounds=rounds, text=judged, progress=progress)
    if plot is not None:
        files.write(benchmark.figure(report), plot, force)
    if as_json:
        console.print_json(report.model_dump_json(indent=2))
        return
    _print(report)
    if plot is not None:
        console.out.print(f"wrote {plot}")


def _numbers(option: str, text: str) -> list[int]:
    from lfm2_export.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected numbers of tokens, like 128,1024") from error


def _print(report: BenchReport) -> None:
    from lfm2_export.cli.console import out, warned

    out.print(_speeds(report, "decode"))
    out.print(_speeds(report, "prefill"))
    if any(contender.stages for contender in report.contenders):
        out.print(_stages(report))
    out.print(_costs(report))
    if report.text is not None:
        out.print(_losses(report))
    for contender in report.contenders:
        if contender.drafted is not None:
            out.print(_drafted(contender.name, contender.drafted))
    memory = report.bandwidth_bytes_per_second
    out.print(
        f"{report.machine['processor']}; {report.threads} threads read memory at {memory.median / 1e9:.1f} GB/s "
        f"({memory.min / 1e9:.1f} to {memory.max / 1e9:.1f})",
    )
    speeds = [speed for each in report.contenders for speed in (*each.decode, *each.prefill)]
    if dropped := sum(speed.noisy_samples for speed in speeds):
        out.print(
            warned(f"{dropped} samples were taken while others used the machine", "; figures with * rest on such")
        )
    if report.random_weights:
        out.print(warned("random weights", ": speed counts, answers do not"))


def _speeds(report: BenchReport, what: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{what}, tokens per second (median of {report.rounds} rounds)", title_justify="left")
    table.add_column("contender")
    headings = ["context" if what == "decode" else "prompt", "tok/s", "min to max", "× first"]
    for heading in headings + (["MB/token", "of memory"] if what == "decode" else []):
        table.add_column(heading, justify="right")
    for contender in report.contenders:
        name = contender.name
        for speed in contender.decode if what == "decode" else contender.prefill:
            table.add_row(name, *_cells(speed, what == "decode"))
            name = ""
    return table


def _cells(speed: Speed, decode: bool) -> list[str]:
    if speed.tokens_per_second is None:
        return [str(speed.tokens), "window"]
    spread = speed.tokens_per_second
    cells = [
        str(speed.tokens),
        f"{_figure(spread.median)}{'*' if speed.noisy else ''}",
        f"{_figure(spread.min)} to {_figure(spread.max)}",
        "–" if speed.ratio is None else f"{speed.ratio:.2f}",
    ]
    if decode:
        cells.append("–" if speed.bytes_per_token is None else f"{speed.bytes_per_token / 1e6:.1f}")
        cells.append("–" if speed.bandwidth_share is None else f"{speed.bandwidth_share:.0%}")
    return cells


def _figure(tokens_per_second: float) -> str:
    return f"{tokens_per_second:.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def _stages(report: BenchReport) -> Table:
    from rich.table import Table

    known = [(contender.name, contender.stages) for contender in report.contenders if contender.stages]
    table = Table(title="a decode step at the longest context, share of the operators' time", title_justify="left")
    table.add_column("contender")
    for stage in known[0][1]:
        table.add_column(stage, justify="right")
    for name, stages in known:
        table.add_row(name, *(f"{share:.0%}" for share in stages.values()))
    return table


def _drafted(name: str, reply: Drafted) -> str:
    speed, plain = reply.tokens / reply.seconds, reply.tokens / reply.plain_seconds
    return (
        f"{name} with drafts ({reply.source}): {_figure(speed)} tok/s, {_figure(plain)} without "
        f"({speed / plain:.2f} ×); accepted {reply.accepted} of {reply.drafted}, on {reply.text} said before"
    )


def _costs(report: BenchReport) -> Table:
    from rich.table import Table

    table = Table(title="load, memory, size", title_justify="left")
    for heading in ("contender", "runtime"):
        table.add_column(heading)
    for heading in ("window", "load s", "peak MB", "library MB", "file MB"):
        table.add_column(heading, justify="right")
    for contender in report.contenders:
        table.add_row(contender.name, contender.runtime, *_cost_cells(contender))
    return table


def _losses(report: BenchReport) -> Table:
    """The contenders' divergence from fp32, beside the speed that it buys."""
    from rich.table import Table

    longest = report.contenders[0].decode[-1].tokens
    table = Table(title=f"against fp32, on {report.text}", title_justify="left")
    table.add_column("contender")
    for heading in ("mean KLD", "p99", "top-1", "clear flips", "perplexity", f"tok/s @{longest}", "file MB"):
        table.add_column(heading, justify="right")
    for contender in report.contenders:
        if contender.loss is not None:
            table.add_row(contender.name, *_loss_cells(contender, contender.loss))
    return table


def _loss_cells(contender: ContenderReport, loss: QuantizationLoss) -> list[str]:
    speed = contender.decode[-1].tokens_per_second
    return [
        f"{loss.mean_kld:.2g} ± {loss.kld_standard_error:.1g}",
        f"{loss.p99_kld:.2g}",
        f"{loss.top1:.2%}",
        "–" if loss.clear_flips is None else f"{loss.clear_flips:.2%}",
        f"× {loss.perplexity_ratio:.4f}",
        "window" if speed is None else _figure(speed.median),
        f"{contender.size_bytes / 1e6:.1f}",
    ]


def _cost_cells(contender: ContenderReport) -> list[str]:
    return [
        str(contender.window),
        f"{contender.load_seconds.median:.2f}",
        f"{contender.peak_rss_bytes.median / 1e6:.0f}",
        f"{contender.baseline_rss_bytes.median / 1e6:.0f}",
        f"{contender.size_bytes / 1e6:.1f}",
    ]
