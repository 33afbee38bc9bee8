"""`lfm2-export parity`: prove an artifact again, anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "parity"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="The checkpoint it was made from; found by itself for nano and the hub.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base of a LoRA adapter: folder or hub id. [the one it names]")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Only this runtime (repeatable); absent is an error.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Where eager PyTorch computes what it must equal: cpu or cuda.")
    ] = "cpu",
    text: Annotated[
        Path | None, typer.Option(help="Judge what quantization cost on this UTF-8 text, not on held-out chats.")
    ] = None,
    effort: Annotated[str, typer.Option(help="full, or quick: a fifth of the tokens, fewer cases.")] = "full",
    report: Annotated[
        list[Path] | None, typer.Option(help="Write it to this .html, .md, .xml (JUnit) or .json (repeatable).")
    ] = None,
    bench: Annotated[Path | None, typer.Option(help="Show these speeds too: what `bench --json` printed.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Find the first layer and operation that diverges, in the first --runtime.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Of --trace, relative. [the recipe's max_error, on CPUs at most 0.01]"),
    ] = None,
    drift_steps: Annotated[
        int, typer.Option(help="Decode steps of a report's drift, if the window holds them.")
    ] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Replace existing reports.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Prove an artifact against eager PyTorch.

    Exit code 1 if any gate fails, 3 if none did but what proves it does not run on this machine.
    """
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.cli import console
    from lfm2_export.environment.resources import check_memory
    from lfm2_export.errors import UNPROVEN, UsageError
    from lfm2_export.evaluate.origin import checkpoint_of
    from lfm2_export.parity.detail import Detail
    from lfm2_export.parity.effort import extent
    from lfm2_export.parity.prove import prove
    from lfm2_export.parity.reference import reference_device
    from lfm2_export.recipes import Recipe
    from lfm2_export.report import outputs, reading

    chosen, paths = extent(effort), report or []
    outputs.check(paths, force)
    speeds = reading.read_bench(bench)
    if drift_steps < 1 or (tolerance is not None and tolerance <= 0):
        raise UsageError("--drift-steps and --tolerance are above 0")
    device = reference_device(reference)
    opened = open_artifact(artifact)
    detail = Detail(drift_steps=drift_steps) if outputs.wants_detail(paths) else None
    with console.progress(quiet) as progress:
        progress("checking the checkpoint")
        made_from = checkpoint_of(opened, checkpoint, base)
        rules = Recipe.model_validate(opened.manifest.recipe).quantization
        check_memory(made_from.config, rules, "run")
        result = prove(opened, made_from, runtime or (), chosen, progress, text, detail, device)
        if trace:
            from lfm2_export.parity.divergence import find_divergence

            result.trace = find_divergence(opened, made_from, tolerance, progress, runtime[0] if runtime else None)
    outputs.write(result, paths, speeds, force)
    if as_json:
        console.print_json(result.model_dump_json(indent=2))
    else:
        console.print_report(result)
        for path in paths:
            console.out.print(f"wrote {path}")
    if result.trace is not None and result.trace.first is not None:
        raise typer.Exit(1)
    if not result.passed:
        raise typer.Exit(1 if result.unproven is None else UNPROVEN)
