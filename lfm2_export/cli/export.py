"""`lfm2-export export`: checkpoint → artifact folder, proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_export.errors import UNPROVEN

if TYPE_CHECKING:
    from lfm2_export.artifact.folder import Artifact
    from lfm2_export.parity.report import ParityReport

NAME = "export"


def run(
    source: Annotated[
        str, typer.Argument(help="Checkpoint or LoRA folder, hub id, nano, nano-lfm3, nano-moe, nano-vl (embedded).")
    ] = "nano",
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe name or path; see `recipes`.")] = "xnnpack-int8",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make. [out/NAME-RECIPE]")] = None,
    form: Annotated[str | None, typer.Option(help="explicit, or resident (stock LLM runners).")] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", "--context", help="Tokens of KV cache. [the recipe's; at most the model's positions]"),
    ] = None,
    soc: Annotated[str | None, typer.Option(help="Qualcomm chip to compile for (NPU recipes).")] = None,
    chunk: Annotated[int | None, typer.Option("--prefill-chunk", help="Tokens of a prefill call (NPU).")] = None,
    fallback: Annotated[bool, typer.Option("--allow-fallback", help="Accept nodes outside the NPU.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="How weights are rounded: nearest, mse, gptq, awq, awq-gptq, qat.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change a recipe value: key.path=value.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base of a LoRA adapter: folder or hub id. [the one it names]")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub checkpoint.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what this command made there.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove the artifact before it is written.")] = True,
    effort: Annotated[str, typer.Option(help="full, or quick: a fifth of the tokens, fewer cases.")] = "full",
    report: Annotated[
        list[Path] | None, typer.Option(help="Write the proof to this .html, .md, .xml or .json, passed or not.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a checkpoint, and prove the artifact against eager PyTorch before it appears.

    Exit code 3: it was made and checked, but what proves it does not run on this machine.
    """
    from lfm2_export.cli import console
    from lfm2_export.errors import UsageError
    from lfm2_export.parity.detail import Detail
    from lfm2_export.parity.effort import extent
    from lfm2_export.pipeline import ParityError, export
    from lfm2_export.recipes import load
    from lfm2_export.report import outputs

    changes = list(overrides or [])
    changes += [f"form={form}"] if form is not None else []
    changes += [f"window={window}"] if window is not None else []
    changes += [f"weights={weights}"] if weights is not None else []
    changes += [f"options.soc={soc}"] if soc is not None else []
    changes += [f"options.prefill_chunk={chunk}"] if chunk is not None else []
    changes += ["options.allow_fallback=true"] if fallback else []
    chosen, paths = extent(effort), report or []
    outputs.check(paths, force)
    if paths and not verify:
        raise UsageError("--report shows the proof, and --no-verify leaves it out; choose one")
    detail = Detail() if outputs.wants_detail(paths) else None
    try:
        with console.progress(quiet) as progress:
            artifact, proof = export(
                source,
                recipe,
                output,
                revision=revision,
                base=base,
                overrides=changes,
                force=force,
                verify=verify,
                effort=chosen,
                progress=progress,
                detail=detail,
            )
    except ParityError as failure:
        outputs.write(failure.report, paths, force=force)
        if not as_json:
            console.print_report(failure.report)
        raise
    if proof is not None:
        outputs.write(proof, paths, force=force)
    if as_json:
        console.print_json(artifact.manifest.model_dump_json(indent=2))
    else:
        _show(artifact, proof)
        if (whole := artifact.manifest.window) < load(recipe, changes).window:
            console.out.print(f"a window of {whole} tokens: the model has no more positions")
    if proof is not None and proof.unproven is not None:
        raise typer.Exit(UNPROVEN)


def _show(artifact: Artifact, proof: ParityReport | None) -> None:
    from lfm2_export import targets
    from lfm2_export.cli import console

    if proof is None:
        console.out.print(console.warned("not proven", ": --no-verify was given; `lfm2-export parity` proves it later"))
    else:
        console.print_report(proof)
    manifest = artifact.manifest
    cache = str(manifest.recipe["cache"])
    if slow := targets.capabilities(manifest.target).slow_caches.get(cache):
        console.out.print(console.warned(f"a {cache} cache", f" {slow}"))
    console.out.print(f"wrote {artifact.folder}")
