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
    runtime: Annotated[
        list[str] | None, typer.Option(help="Only this runtime (repeatable); absent is an error.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Judge what quantization cost on this UTF-8 text, not on held-out chats.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the JSON report to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Prove an artifact against eager PyTorch. Exit code 1 if any gate fails."""
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.cli import console
    from lfm2_export.files import write_text
    from lfm2_export.parity.run import checkpoint_of, prove

    opened = open_artifact(artifact)
    with console.progress(quiet) as stage:
        stage("checking the checkpoint")
        result = prove(opened, checkpoint_of(opened, checkpoint), only=runtime or (), stage=stage, text=text)
    document = result.model_dump_json(indent=2)
    if report is not None:
        write_text(report, document + "\n")
    if as_json:
        console.print_json(document)
    else:
        console.print_report(result)
    if not result.passed:
        raise typer.Exit(1)
