"""Artifacts on the CPU beside llama.cpp, the runtime's own exporter and eager PyTorch, on the same random weights.

    python -m benchmarks.cpu --target xnnpack --size 350m

Everything made is kept in a cache folder, so that a second run only measures. Results go to benchmarks/results/ as
JSON and as a Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import markdown
from benchmarks.peers import eager, executorch_llm, genai_builder, llama_cpp, ours
from lfm2_export.bench.rounds import bench
from lfm2_export.bench.spec import Spec
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.files import ANY, write_text
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.progress import Progress

PREFILL = (128, 512)  # tokens
RESULTS = Path(__file__).parent / "results"
Build = Callable[[Path, Path, int, Progress], list[Spec]]  # (checkpoint, cache, longest, progress)
_FIELDS: dict[str, dict[str, Build]] = {
    "xnnpack": {
        "ours": ours.xnnpack,
        "llama.cpp": llama_cpp.integers,
        "export_llm": executorch_llm.build,
        "eager": eager.build,
    },
    "onnx": {
        "ours": ours.onnx,
        "llama.cpp": llama_cpp.all_kinds,
        "genai": genai_builder.build,
        "eager": eager.build,
    },
}
_CONTEXTS = {"xnnpack": "128,2048,8192", "onnx": "512,4096"}


class Target(StrEnum):
    xnnpack = "xnnpack"
    onnx = "onnx"


def main(
    target: Annotated[Target, typer.Option(help="Whose artifacts.")] = Target.xnnpack,
    size: Annotated[str, typer.Option(help="350m or 1.2b.")] = "350m",
    cache: Annotated[Path, typer.Option(help="Where checkpoints and contenders are kept.")] = Path("out/benchmarks"),
    only: Annotated[
        list[str] | None, typer.Option(help="Only these: ours, llama.cpp, export_llm, genai, eager (repeatable).")
    ] = None,
    threads: Annotated[str, typer.Option(help="One run per number of threads.")] = "1,2",
    contexts: Annotated[str | None, typer.Option(help="Tokens seen when a step is timed.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build the contenders, measure nothing.")] = False,
) -> None:
    """Build the contenders, run them side by side, write the results."""
    try:
        with console.progress(quiet=False) as progress:
            depths = [int(part) for part in (contexts or _CONTEXTS[target]).split(",")]
            field = {name: build for name, build in _FIELDS[target].items() if not only or name in only}
            specs = _build(cache / size, field, max(depths), progress)
            if build_only:
                return
            for count in (int(part) for part in threads.split(",")):

                def of(text: str, count: int = count) -> None:
                    progress(f"{count} threads: {text}")

                report = bench(specs, depths, PREFILL, threads=count, rounds=rounds, progress=Progress(of))
                RESULTS.mkdir(exist_ok=True)
                name = f"{target}-{size}-{count}t-{date.today().isoformat()}"
                write_text(RESULTS / f"{name}.json", report.model_dump_json(indent=2) + "\n", True, ANY)
                write_text(RESULTS / f"{name}.md", markdown.page(f"LFM2 {size}, {count} threads", report), True, ANY)
                progress(f"wrote {RESULTS / name}.json and .md")
    except Lfm2ExportError as error:
        console.err.print(f"[red]error:[/] {error}")
        raise typer.Exit(error.exit_code) from error


def _build(folder: Path, field: dict[str, Build], longest: int, progress: Progress) -> list[Spec]:
    """The checkpoint and every contender of the field for `longest` tokens, in the order of the table."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        init_checkpoint(folder.name, checkpoint, progress=progress)
    specs = [spec for build in field.values() for spec in build(checkpoint, folder, longest, progress)]
    return [spec.model_copy(update={"random_weights": True}) for spec in specs]


if __name__ == "__main__":
    typer.run(main)
