"""`lfm2-export doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "doctor"


def run(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Check libraries, versions and machine features, and show what stopped runs left on the disk.

    Exit code 1 if a required part is missing or does not fit.
    """
    import json

    from rich.table import Table
    from rich.text import Text

    from lfm2_export.cli import console
    from lfm2_export.environment import leftovers, libraries
    from lfm2_export.environment.machine import machine as machine_facts
    from lfm2_export.runtimes import webgpu

    parts = libraries.parts()
    machine, left = machine_facts() | {"WebGPU": webgpu.described()}, leftovers.found()
    healthy = all(part.healthy or not part.required for part in parts)
    if as_json:
        document = {
            "healthy": healthy,
            "parts": [part._asdict() for part in parts],
            "machine": machine,
            "leftovers": [{**each._asdict(), "path": str(each.path)} for each in left],
        }
        console.print_json(json.dumps(document, indent=2))
    else:
        table = Table()
        for heading in ("part", "version", "for", "state"):
            table.add_column(heading)
        for part in parts:
            color = "green" if part.healthy else "bold red" if part.required else "yellow"
            table.add_row(part.name, part.version or "–", part.purpose, Text(part.state, color))
        console.out.print(table)
        for part in parts:
            if part.remedy is not None:  # whole, to be pasted: a column would cut it
                console.out.print(f"{part.name}: {part.remedy}", soft_wrap=True)
        for name, value in machine.items():
            console.out.print(f"{name}: {value}", soft_wrap=True)
        for each in left:
            line = f"on the disk: {each.path}, {console.megabytes(each.size)}, {each.state}"
            console.out.print(line, style="yellow", soft_wrap=True)
        verdict = ("ready", "bold green") if healthy else ("not ready", "bold red")
        console.out.print(Text.assemble(verdict, "" if healthy else ": see the lines above"))
    if not healthy:
        raise typer.Exit(1)
