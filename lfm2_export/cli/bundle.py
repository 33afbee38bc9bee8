"""`lfm2-export bundle`: pack an artifact as an app ships it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "bundle"
_KINDS = ("web",)


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    kind: Annotated[str, typer.Option("--for", help="What to pack for: web.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make. [ARTIFACT-web]")] = None,
    node_modules: Annotated[
        Path | None, typer.Option(help="Take the JavaScript from here. [fetched with npm, then cached]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bundle's description as JSON.")] = False,
) -> None:
    """Pack an artifact: for the web, a folder of static files with a chat page that proves itself in the browser."""
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.bundle import web
    from lfm2_export.cli import console
    from lfm2_export.errors import UsageError
    from lfm2_export.files import BUNDLE

    if kind not in _KINDS:
        raise UsageError(f"cannot bundle for {kind!r}; known: {', '.join(_KINDS)}")
    output = output or artifact.resolve().with_name(f"{artifact.resolve().name}-{kind}")
    opened = open_artifact(artifact)
    with console.progress(quiet) as stage:
        web.pack(opened, output, node_modules=node_modules, force=force, stage=stage)
    if as_json:
        console.print_json((output / BUNDLE).read_text(encoding="utf-8").rstrip())
        return
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.out.print(
        f"wrote {output}, {console.megabytes(size)} of static files for any web server", markup=False, soft_wrap=True
    )
    console.out.print(
        f"try it: python3 -m http.server --bind 127.0.0.1 --directory {output} 8000", markup=False, soft_wrap=True
    )
