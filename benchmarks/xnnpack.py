"""XNNPACK artifacts beside llama.cpp, ExecuTorch's own export and eager PyTorch, on the same random weights.

    python -m benchmarks.xnnpack --size 350m

Everything made is kept in a cache folder, so that a second run only measures. Results go to benchmarks/results/ as
JSON and as a Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import markdown
from benchmarks.peers import eager, executorch_llm, llama_cpp, ours
from lfm2_export.bench.run import bench
from lfm2_export.bench.spec import Spec
from lfm2_export.checkpoint.random_init import init_checkpoint
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.files import write_text

PREFILL = (128, 512)  # tokens
RESULTS = Path(__file__).parent / "results"
_CONTENDERS = {"ours": ours, "llama.cpp": llama_cpp, "export_llm": executorch_llm, "eager": eager}


def main(
    size: Annotated[str, typer.Option(help="350m or 1.2b.")] = "350m",
    cache: Annotated[Path, typer.Option(help="Where checkpoints and contenders are kept.")] = Path("out/benchmarks"),
    only: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(_CONTENDERS)} (repeatable).")] = None,
    threads: Annotated[str, typer.Option(help="One run per number of threads.")] = "1,2",
    contexts: Annotated[str, typer.Option(help="Tokens seen when a step is timed.")] = "128,2048,8192",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build the contenders, measure nothing.")] = False,
) -> None:
    """Build the contenders, run them side by side, write the results."""
    try:
        with console.progress(quiet=False) as stage:
            depths = [int(part) for part in contexts.split(",")]
            specs = _build(cache / size, only or list(_CONTENDERS), max(depths), stage)
            if build_only:
                return
            for count in (int(part) for part in threads.split(",")):

                def of(text: str, count: int = count) -> None:
                    stage(f"{count} threads: {text}")

                report = bench(specs, depths, PREFILL, threads=count, rounds=rounds, stage=of)
                RESULTS.mkdir(exist_ok=True)
                name = f"xnnpack-{size}-{count}t-{date.today().isoformat()}"
                write_text(RESULTS / f"{name}.json", report.model_dump_json(indent=2) + "\n")
                write_text(RESULTS / f"{name}.md", markdown.page(f"LFM2 {size}, {count} threads", report))
                stage(f"wrote {RESULTS / name}.json and .md")
    except Lfm2ExportError as error:
        console.err.print(f"[red]error:[/] {error}")
        raise typer.Exit(error.exit_code) from error


def _build(folder: Path, names: list[str], longest: int, stage: Callable[[str], None]) -> list[Spec]:
    """The checkpoint and every contender of those names for `longest` tokens, in the order of the table."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        init_checkpoint(folder.name, checkpoint, stage=stage)
    specs = [spec for name in names for spec in _CONTENDERS[name].build(checkpoint, folder, longest, stage)]
    return [spec.model_copy(update={"random_weights": True}) for spec in specs]


if __name__ == "__main__":
    typer.run(main)
