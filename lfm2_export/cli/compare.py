"""`lfm2-export compare`: two artifacts or two parity reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lfm2_export.report.comparison import Comparison

NAME = "compare"


def run(
    left: Annotated[Path, typer.Argument(help="Artifact folder, or a .json report of `parity`.")],
    right: Annotated[Path, typer.Argument(help="Another.")],
    report: Annotated[
        list[Path] | None, typer.Option(help="Write it to this .html, .md or .json (repeatable).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing reports.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Lay two artifacts or reports side by side: gates, quality, sizes, versions, recipes."""
    from lfm2_export.cli import console
    from lfm2_export.files import write_text
    from lfm2_export.report import outputs, page
    from lfm2_export.report.compare import compare

    paths = report or []
    outputs.check(paths, force, page.COMPARISONS)
    found = compare(left, right)
    for path in paths:
        write_text(path, page.comparison(found, path.suffix), force, outputs.KINDS[path.suffix])
    if as_json:
        console.print_json(found.model_dump_json(indent=2))
    else:
        console.out.print(_table(found))


def _table(found: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    for name in (found.left, found.right):
        table.add_column(Text(name))
    for section, rows in found.sections:
        table.add_section()
        table.add_row(Text(section, style="bold"), "", "")
        for row in rows:
            cells = ("–" if side is None else side for side in (row.left, row.right))
            table.add_row(Text(row.name), *(Text(cell, style="yellow" if row.differs else "") for cell in cells))
    return table
