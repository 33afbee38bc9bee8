"""`lfm2-export matrix`: a plan of checkpoints, recipes and runtimes, exported and proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lfm2_export.matrix.outcome import Matrix

NAME = "matrix"


def run(
    plan: Annotated[Path, typer.Argument(help="YAML file: checkpoints, recipes, runtimes.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of artifacts, reports and pages. [out/PLAN]")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Make cells on a Ray cluster: local (this machine), auto, or HOST:PORT.")
    ] = None,
    bench: Annotated[Path | None, typer.Option(help="Show these speeds too: what `bench --json` printed.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make cells again whose inputs have changed since they were proven.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the matrix as JSON.")] = False,
) -> None:
    """Export and prove every checkpoint of a plan by every recipe; what stands already is not done again.

    Exit code 1 if a cell failed, 3 if none did and not all are proven on these machines.
    """
    from lfm2_export.cli import console
    from lfm2_export.matrix import run as matrix
    from lfm2_export.matrix.plan import read_plan
    from lfm2_export.report import reading

    read, speeds = read_plan(plan), reading.read_bench(bench)
    folder = output or Path("out") / plan.stem
    with console.progress(quiet) as progress:
        found = matrix.run(read, plan.stem, folder, force=force, ray=ray, bench=speeds, progress=progress)
    if as_json:
        console.print_json(found.model_dump_json(indent=2))
    else:
        console.out.print(_table(found))
        console.out.print(found.verdict, style="bold green" if found.passed else "bold red")
        console.out.print(f"wrote {folder / 'index.html'}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _table(found: Matrix) -> Table:
    from rich.table import Table
    from rich.text import Text

    from lfm2_export.cli.console import megabytes

    colors = {"proven": "green", "failed": "bold red"}
    table = Table(title=found.plan, title_justify="left")
    table.add_column("cell")
    table.add_column("verdict")
    table.add_column("size", justify="right")
    for cell in found.cells:
        told = [(cell.status, colors.get(cell.status, "yellow")), (" (kept)" if cell.kept else "", "dim")]
        size = "–" if cell.size_bytes is None else megabytes(cell.size_bytes)
        table.add_row(cell.cell, Text.assemble(*told, (f": {cell.reason}" if cell.reason else "", "")), size)
    return table
