"""Lowerings: (quantized traced model, recipe) → files. One module per target, found by its file name.

A target module has two functions, the whole of what `export` knows of it:

- `check(recipe, config) -> None`: refuse (RecipeError) what this target cannot do, before a weight is read;
- `lower(decoder, recipe, folder, stage) -> Lowered`: write the artifact's files into `folder`, announcing each
  step through `stage("…")`; LoweringError when the result is not what the recipe demands. The checkpoint's config,
  tokenizer and template are there already, copied as they are: a target adds what its runtimes look for in them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

from lfm2_export.artifact.manifest import MethodSpec
from lfm2_export.errors import RecipeError

if TYPE_CHECKING:
    from lfm2_export.checkpoint.config import LFM2Config
    from lfm2_export.model.decoder import Decoder
    from lfm2_export.recipes import Recipe

Stage = Callable[[str], None]


class Lowered(NamedTuple):
    """What a lowering made, as the manifest records it."""

    methods: list[MethodSpec]
    transport: Literal["slice", "inplace"]
    cache_layout: Literal["heads-time", "time-heads"]
    versions: dict[str, str]
    runtime_requirement: str


class Target(Protocol):
    def check(self, recipe: Recipe, config: LFM2Config) -> None: ...

    def lower(self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage) -> Lowered: ...

    def weights_error(self, decoder: Decoder, folder: Path) -> float | None: ...


def names() -> list[str]:
    """Every target, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Target:
    """The target of that name. RecipeError for an unknown one."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}; known: {', '.join(names())}")
    return cast(Target, importlib.import_module(f"{__name__}.{name}"))
