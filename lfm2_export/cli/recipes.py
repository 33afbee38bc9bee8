"""`lfm2-export recipes`: what can be made."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "recipes"


def run(
    name: Annotated[str | None, typer.Argument(help="Show this recipe in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the built-in recipes, or show one."""
    import json

    from rich.table import Table

    from lfm2_export import recipes
    from lfm2_export.cli import console

    loaded = [recipes.load(each) for each in ([name] if name else recipes.names())]
    if as_json:
        console.print_json(json.dumps([recipe.model_dump(mode="json") for recipe in loaded], indent=2))
    elif name:
        console.out.print(recipes.path_of(name).read_text(encoding="utf-8").rstrip())
    else:
        table = Table()
        for heading in ("recipe", "target", "what it makes"):
            table.add_column(heading)
        for recipe in loaded:
            table.add_row(recipe.name, recipe.target, recipe.summary)
        console.out.print(table)
