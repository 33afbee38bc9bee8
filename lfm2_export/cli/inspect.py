"""`lfm2-export inspect`: what is in an artifact or a checkpoint, without loading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lfm2_export.artifact.manifest import Manifest, MethodSpec

NAME = "inspect"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, or a checkpoint's.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show an artifact's files, methods, delegation, quantization and proof; checks every checksum first.

    Of a checkpoint: what kind of model it holds, and what can be exported of it.
    """
    from lfm2_export.artifact.folder import MANIFEST, open_artifact
    from lfm2_export.cli import console

    if (artifact / "config.json").is_file() and not (artifact / MANIFEST).exists():
        _show_checkpoint(artifact, as_json)
        return
    manifest = open_artifact(artifact).manifest
    if as_json:
        console.print_json(manifest.model_dump_json(indent=2))
        return
    console.out.print(_overview(manifest))
    # beside the tables, not in them: a digest is there to be pasted, and a column of 80 would cut it
    console.out.print(f"weights sha256 {manifest.source.weights_sha256}", soft_wrap=True)
    console.out.print(_files(manifest))
    for name, entry in manifest.files.items():
        console.out.print(f"{entry.sha256}  {name}", soft_wrap=True)  # as `sha256sum --check` reads it
    for method in manifest.methods:
        console.out.print(_tensors(method))
        if method.delegation:
            console.out.print(console.delegation_line(method.delegation))
    if manifest.parity:
        what = "proof" if manifest.unproven is None else "check"
        console.out.print(console.gates_table(manifest.parity, f"{what} at export: {manifest.verdict}"))
    else:
        console.out.print(console.warned("not proven", ": exported with --no-verify; run `lfm2-export parity`"))


def _show_checkpoint(folder: Path, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.table import Table

    from lfm2_export import targets
    from lfm2_export.cli import console
    from lfm2_export.environment.resources import parameters
    from lfm2_export.model.load import open_checkpoint

    checkpoint = open_checkpoint(str(folder))
    decoder, vision = checkpoint.config, checkpoint.vision
    counts = {"decoder": parameters(decoder), "vision": 0 if vision is None else parameters(vision)}
    if as_json:
        parts = {"decoder": asdict(decoder), "vision": None if vision is None else asdict(vision)}
        console.print_json(json.dumps(parts | {"parameters": counts}))
        return
    table = Table(show_header=False, title="checkpoint", title_justify="left")
    table.add_row("name", checkpoint.name + (" (random weights)" if checkpoint.random_weights else ""))
    table.add_row("model", decoder.model_type if vision is None else f"{vision.model_type}, for text and images")
    table.add_row("decoder", f"{decoder.model_type}, {_layers(decoder.layer_types)}")
    table.add_row(
        "", f"hidden size {decoder.hidden_size:,}, {decoder.vocab_size:,} tokens, {counts['decoder']:,} weights"
    )
    if vision is not None:
        table.add_row("image part", _layers(vision.layer_types))
        table.add_row("", f"hidden size {vision.hidden_size:,}, {counts['vision']:,} weights with the projector")
    able = "" if vision is None else f", by {' and '.join(targets.with_images(vision.model_type))}"
    table.add_row("can be exported", f"whole{able}")
    if vision is not None:
        table.add_row("", "the decoder alone, with --set parts=text")
    console.out.print(table)


def _layers(kinds: Sequence[str]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())
    return f"{len(kinds)} layers: {counts}"


def _overview(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table(show_header=False, title="artifact", title_justify="left")
    source = manifest.source
    name = source.name + (f" @ {source.revision}" if source.revision else "")
    table.add_row("source", name + (" (random weights)" if source.random_weights else ""))
    if (adapter := source.adapter) is not None:
        table.add_row("adapter", f"LoRA, merged onto {adapter.base}")
    table.add_row("recipe", f"{manifest.recipe['name']}: {manifest.recipe['summary']}")
    if manifest.recipe.get("parts") == "text":
        table.add_row("parts", "the text decoder alone")
    table.add_row("target", f"{manifest.target}, {manifest.form} form, {manifest.transport} transport")
    table.add_row("window", f"{manifest.window} tokens")
    if manifest.form == "explicit":
        context, fixed = manifest.methods[0].state_bytes(manifest.window)
        table.add_row("state", f"{context:,} bytes for the whole window, {fixed:,} whatever the window")
    table.add_row("drafts", f"verified up to {manifest.speculation} tokens at once" if manifest.speculation else "none")
    table.add_row("quantization", "\n".join(f"{kind}: {how}" for kind, how in manifest.quantization.items()))
    table.add_row("needs", manifest.runtime_requirement)
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return table


def _files(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table(title="files", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.size:,}")
    return table


def _tensors(method: MethodSpec) -> Table:
    from rich.table import Table

    table = Table(title=f"{method.file}: {method.name} (up to {method.max_tokens} tokens a call)", title_justify="left")
    for heading in ("", "name", "dtype", "shape"):
        table.add_column(heading)
    for direction, specs in (("in", method.inputs), ("out", method.outputs)):
        for spec in specs:
            table.add_row(direction, spec.name, spec.dtype, " × ".join(map(str, spec.shape)))
    return table
