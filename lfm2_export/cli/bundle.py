"""`lfm2-export bundle`: pack an artifact as an app ships it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lfm2_export.bundle.pack import Bundle

NAME = "bundle"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    kind: Annotated[str, typer.Option("--for", help="What to pack for: android, ios, desktop or web.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="What to make. [ARTIFACT-KIND.zip; .parts; for web a folder]")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Refuse, before anything is written, what is larger: 200MB.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Cut into numbered parts of at most this size (1.5GB); goes on after a stop.")
    ] = None,
    archive: Annotated[bool, typer.Option("--archive", help="For web too: one archive instead of a folder.")] = False,
    sign: Annotated[Path | None, typer.Option(help="Sign with this private key (PEM, elliptic curve).")] = None,
    node_modules: Annotated[
        Path | None, typer.Option(help="For web: take the JavaScript from here. [fetched with npm, then cached]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
    allow_quick: Annotated[
        bool, typer.Option("--allow-quick", help="Take what --effort quick alone has proven.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bundle's description as JSON.")] = False,
) -> None:
    """Pack an artifact for an app: one archive with golden cases to replay, or for the web a chat page."""
    from lfm2_export.bundle.budget import parse_size
    from lfm2_export.bundle.pack import bundle
    from lfm2_export.cli import console

    most, part = (None if text is None else parse_size(text) for text in (max_size, split))
    with console.progress(quiet) as progress:
        made = bundle(
            artifact,
            kind,
            output,
            max_size=most,
            split=part,
            archive=archive,
            sign=sign,
            node_modules=node_modules,
            force=force,
            allow_quick=allow_quick,
            progress=progress,
        )
    if as_json:
        console.print_json(made.description.to_json().decode().rstrip())
        return
    for line in _lines(made, kind):
        console.out.print(line, soft_wrap=True)


def _lines(made: Bundle, kind: str) -> list[str]:
    from lfm2_export.cli.console import megabytes

    described = made.description
    what = f"in {made.parts} parts" if made.parts else "archive" if made.path.is_file() else "of static files"
    lines = [f"wrote {made.path}, {megabytes(made.size)} {what}, {len(described.files) + 1} files"]
    if made.resumed:
        lines.append(f"went on from an interrupted run: {megabytes(made.resumed)} were there already")
    lines.append(f"the app must use {described.runtime_requirement}")
    if made.licences:
        lines.append(f"licence of the checkpoint: {', '.join(made.licences)}")
    else:
        lines.append("no licence text: the checkpoint came without one; find out under which you may ship it")
    if described.random_weights:
        lines.append("random weights: for trying out only")
    if made.unproven is not None:
        lines.append(f"not proven where it was exported ({made.unproven}); the golden cases are a stand-in's")
    elif made.proof is None:
        lines.append("not proven: exported with --no-verify")
    elif made.proof == "quick":
        lines.append("proven with quick effort: for trying out only")
    if made.signature is not None:
        lines.append(f"signature: {made.signature}")
    if made.path.is_dir() and kind == "web" and not made.parts:
        lines.append(f"try it: python3 -m http.server --bind 127.0.0.1 --directory {made.path} 8000")
    else:
        lines.append(f"check it: lfm2-export verify {made.path}")
    return lines
