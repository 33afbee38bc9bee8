"""A benchmark report as a Markdown page for the repository."""

from __future__ import annotations

from lfm2_export.bench.report import BenchReport, ContenderReport, Speed


def page(title: str, report: BenchReport) -> str:
    """One table, then everything needed to judge it."""
    first = report.contenders[0]
    headings = [f"decode @{speed.tokens}" for speed in first.decode]
    headings += [f"prefill {speed.tokens}" for speed in first.prefill]
    headings += ["load s", "memory MB", "file MB"]
    rows = [_row(contender) for contender in report.contenders]
    memory = report.bandwidth_bytes_per_second
    facts = [
        f"Tokens per second, median of {report.rounds} rounds; in parentheses the ratio to the first row and, for "
        "decode, the share of the memory's bandwidth that weights and cache take.",
        "An asterisk: only samples during which other processes used the machine.",
        "Memory: peak resident size less the library's own; mapped files count.",
        f"{'; '.join(f'{name}: {value}' for name, value in report.machine.items())}.",
        f"Memory read by {report.threads} threads: {memory.median / 1e9:.1f} GB/s "
        f"({memory.min / 1e9:.1f} to {memory.max / 1e9:.1f}).",
        f"Versions: {', '.join(f'{name} {version}' for name, version in report.versions.items())}.",
    ]
    if report.random_weights:
        facts.append("Random weights: speed counts, answers do not.")
    table = [_line(["", *headings]), _line(["---", *["---:"] * len(headings)]), *rows]
    return f"# {title}\n\n" + "\n".join(table) + "\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"


def _row(contender: ContenderReport) -> str:
    memory = contender.peak_rss_bytes.median - contender.baseline_rss_bytes.median
    costs = [f"{contender.load_seconds.median:.2f}", f"{memory / 1e6:.0f}", f"{contender.size_bytes / 1e6:.0f}"]
    return _line([contender.name, *(_cell(speed) for speed in contender.decode + contender.prefill), *costs])


def _cell(speed: Speed) -> str:
    if speed.tokens_per_second is None:
        return "window"
    notes = [f"× {speed.ratio:.2f}"] if speed.ratio is not None else []
    notes += [f"{speed.bandwidth_share:.0%}"] if speed.bandwidth_share is not None else []
    mark = "*" if speed.noisy else ""
    return f"{speed.tokens_per_second.median:.1f}{mark}" + (f" ({', '.join(notes)})" if notes else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
