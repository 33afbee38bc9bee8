"""The plan: a YAML file of checkpoints, recipes and runtimes, and the cells that they make.

A cell is one checkpoint by one recipe. It is exported and proven as `export` does it alone, then proven through the
plan's further runtimes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from lfm2_export import recipes, runtimes, strict_yaml
from lfm2_export.artifact.manifest import Extent
from lfm2_export.errors import PlanError, nearest
from lfm2_export.recipes import Recipe

_YAML = strict_yaml.Kind("a plan", PlanError)
_MOST_CELLS = 10_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointEntry(_Part):
    """A checkpoint: what `export` takes as its first word, `--base` and `--revision`."""

    source: Text
    base: Text | None = None
    revision: Text | None = None
    name: Name | None = None

    @property
    def called(self) -> str:
        """The name in tables and in front of a cell's: the folder's, or a hub id's last part, fit for a file's name."""
        folder = Path(self.source).expanduser().resolve().name
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.") or "checkpoint"


class RecipeEntry(_Part):
    """A recipe: what `export` takes as `--recipe` and `--set`."""

    recipe: Text
    set: tuple[Text, ...] = ()
    name: Name | None = None


class Phone(_Part):
    """A phone at the end of adb, for artifacts that `run-on-device` takes; the words are that command's options."""

    runner: Text
    libraries: tuple[Text, ...] = ()
    serial: Text | None = None
    steps: int = Field(default=8, ge=1)


def _short(key: str) -> BeforeValidator:
    """An entry that is one word stands for that word under `key`."""

    def unfold(entry: Any) -> Any:
        return {key: entry} if isinstance(entry, str) else entry

    return BeforeValidator(unfold)


class Plan(_Part):
    """What is exported and proven."""

    checkpoints: tuple[Annotated[CheckpointEntry, _short("source")], ...] = Field(min_length=1)
    recipes: tuple[Annotated[RecipeEntry, _short("recipe")], ...] = Field(min_length=1)
    runtimes: tuple[Text, ...] = ()  # beside those that every proof goes through
    set: tuple[Text, ...] = ()  # for every recipe
    exclude: tuple[Text, ...] = ()  # names of cells
    effort: Extent = "full"
    details: bool = False  # whether a cell's report has what only a report shows: charts by token, layer and step
    phone: Phone | None = None
    cpus: int = Field(default=1, ge=1)  # that a cell gets of a Ray machine


_KEYS = {key for model in (Plan, CheckpointEntry, RecipeEntry, Phone) for key in model.model_fields}


@dataclass(frozen=True)
class Cell:
    """One checkpoint by one recipe."""

    name: str
    checkpoint: CheckpointEntry
    recipe: RecipeEntry
    recipe_name: str
    overrides: tuple[str, ...]  # the plan's and the recipe's own
    excluded: bool = False

    @property
    def loaded(self) -> Recipe:
        """The recipe with its overrides, before the checkpoint limits its window."""
        return recipes.load(self.recipe.recipe, self.overrides)


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises PlanError, naming file and line, for anything that is none."""
    if not path.is_file():
        raise PlanError(f"{path}: no such plan")
    return parse(_YAML.file(path), str(path))


def parse(data: bytes, where: str) -> Plan:
    """Return the plan in these bytes. Raises PlanError, one line that begins with `where`, if they are none."""
    return _YAML.validated(Plan, _YAML.mapping(data, where), where, _KEYS)


def cells(plan: Plan) -> list[Cell]:
    """Return the plan's cells, checkpoint by checkpoint.

    Raises PlanError for two cells of one name, an excluded one that is none of them and a runtime that could run no
    cell, RecipeError for a recipe that cannot be read, UsageError for an unknown runtime.
    """
    if len(plan.checkpoints) * len(plan.recipes) > _MOST_CELLS:
        raise PlanError(f"{len(plan.checkpoints)} checkpoints × {len(plan.recipes)} recipes: at most {_MOST_CELLS}")
    loaded = {entry: recipes.load(entry.recipe, (*plan.set, *entry.set)) for entry in plan.recipes}
    names = {entry: entry.name or recipe.name for entry, recipe in loaded.items()}
    _check_distinct("recipes", [names[entry] for entry in plan.recipes])
    _check_distinct("checkpoints", [entry.called for entry in plan.checkpoints])
    _check_runtimes(plan.runtimes, loaded.values())
    found = [
        Cell(name, checkpoint, entry, names[entry], (*plan.set, *entry.set), name in plan.exclude)
        for checkpoint in plan.checkpoints
        for entry in plan.recipes
        for name in [f"{checkpoint.called}-{names[entry]}"]
    ]
    _check_distinct("cells", [cell.name for cell in found])
    known = [cell.name for cell in found]
    for name in plan.exclude:
        if name not in known:
            raise PlanError(f"exclude: {name!r:.200} is no cell of this plan{nearest(name, known)}")
    return found


def _check_distinct(what: str, names: Collection[str]) -> None:
    folded = [name.casefold() for name in names]  # they become names of files
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise PlanError(f"{what}: two are called {name!r:.200}; give one of them a name of its own (name: …)")


def _check_runtimes(asked: Iterable[str], loaded: Collection[Recipe]) -> None:
    for name in asked:
        found = runtimes.find(name)
        if not any(recipe.target in found.targets and recipe.form in found.forms for recipe in loaded):
            able = f"{' and '.join(found.targets)} in {' or '.join(found.forms)} form"
            raise PlanError(f"runtimes: {name} runs {able}, which none of the plan's recipes makes")
