"""`lfm2-export run-on-device`: prove an artifact on a phone, over adb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "run-on-device"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder (ExecuTorch, explicit form).")],
    runner: Annotated[Path, typer.Option(help="ExecuTorch's qnn_executor_runner for the phone, or one like it.")],
    library: Annotated[
        list[Path] | None, typer.Option(help="A shared library that the runner needs beside it (repeatable).")
    ] = None,
    adb: Annotated[str | None, typer.Option(help="The adb program. [the one on PATH]")] = None,
    serial: Annotated[str | None, typer.Option(help="Which phone, if several are connected.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The checkpoint it was made from; found by itself for nano and the hub.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Single-token calls, after two prefill chunks.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one run of the runner may take.")] = 600,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the files on the phone.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the JSON report to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run an artifact on a connected phone and compare it with eager PyTorch here. Exit code 1 if a gate fails."""
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.cli import console
    from lfm2_export.device.adb import Phone
    from lfm2_export.device.proof import prove_on_device
    from lfm2_export.evaluate.origin import checkpoint_of
    from lfm2_export.files import check_free_file, write_text
    from lfm2_export.report.outputs import KINDS

    if report is not None:
        check_free_file(report, force, KINDS[".json"])
    opened = open_artifact(artifact)
    phone = Phone(adb, serial)
    with console.progress(quiet) as progress:
        source = checkpoint_of(opened, checkpoint)
        result = prove_on_device(
            opened, source, phone, runner, library or (), steps=steps, timeout=timeout, keep=keep, progress=progress
        )
    document = result.model_dump_json(indent=2)
    if report is not None:
        write_text(report, document + "\n", force, KINDS[".json"])
    if as_json:
        console.print_json(document)
    else:
        console.print_report(result)
    if not result.passed:
        raise typer.Exit(1)
