"""`lfm2-export tune`: bits and groups for each module, within a limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

NAME = "tune"
_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}


def run(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, hub id, nano, nano-lfm3, nano-moe.")] = "nano",
    target: Annotated[str, typer.Option(help="xnnpack or onnx.")] = "xnnpack",
    budget: Annotated[str | None, typer.Option(help="Most bytes of weights, e.g. 230MB.")] = None,
    read: Annotated[
        str | None, typer.Option("--read-budget", help="Most bytes of weights read per token: speed.")
    ] = None,
    max_kld: Annotated[float | None, typer.Option(help="Most KLD, nats per token; as small as that allows.")] = None,
    text: Annotated[Path | None, typer.Option(help="Measure on this UTF-8 text. [the model's own replies]")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of text to measure on.")] = 32,
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe file to write.")] = Path("tuned.yaml"),
    plot: Annotated[Path | None, typer.Option(help="Draw the Pareto front into this .png or .svg.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the search as JSON.")] = False,
) -> None:
    """Measure what each module costs, choose bits and groups within a limit, and write a recipe for `export`."""
    from lfm2_export.cli import console
    from lfm2_export.files import check_free_file
    from lfm2_export.model.load import open_checkpoint
    from lfm2_export.plots import files, pareto_front
    from lfm2_export.quantize.calibration import Calibration
    from lfm2_export.tune.search import KIND, tune, write_recipe

    check_free_file(output, force, KIND)
    if plot is not None:
        files.check(plot, force)
    source_text = {"source": "text", "file": str(text)} if text else {}
    with console.progress(quiet) as progress:
        recipe, found = tune(
            open_checkpoint(source),
            target,
            re.sub(r"[^a-z0-9-]+", "-", output.stem.lower()).strip("-") or "tuned",
            stored=_bytes(budget),
            read=_bytes(read),
            kld=max_kld,
            text=Calibration.model_validate({**source_text, "windows": windows}),
            progress=progress,
        )
    write_recipe(output, recipe, force)
    if plot is not None:
        files.write(pareto_front.figure(found), plot, force)
    if as_json:
        console.print_json(found.model_dump_json(indent=2))
        return
    console.print_tuning(found)
    console.out.print(f"wrote {output}; next: lfm2-export export {source} --recipe {output}")


def _bytes(given: str | None) -> float | None:
    """ "230MB" → 230e6. UsageError for anything else."""
    from lfm2_export.errors import UsageError

    if given is None:
        return None
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?b)?", given.strip().lower())
    if match is None:
        raise UsageError(f"{given!r}: expected a size such as 230MB")
    return float(match[1]) * _UNITS[match[2] or ""]
