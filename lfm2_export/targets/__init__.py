"""Lowerings: (quantized traced model, recipe) → files. One module per target, found by its file name.

A target module has four functions, the whole of what `export` and `parity` know of it:

- `check(recipe, config) -> None`: refuse (RecipeError) what this target cannot do, before a weight is read;
- `lower(decoder, recipe, folder, stage, windows) -> Lowered`: write the artifact's files into `folder`, announcing
  each step through `stage("…")`; LoweringError when the result is not what the recipe demands. The checkpoint's
  config, tokenizer and template are there already, for a target to add what its runtimes look for in them. `windows`
  are the tokens that static activations are calibrated on; empty when the recipe has none, and a target without static
  activations refuses such rules in `check`;
- `weights_error(decoder, folder) -> float | None`: share of the stored weights that are not the decoder's; None where
  they are judged by running them;
- `reference(decoder, recipe, windows) -> Methods | None`: the artifact's methods in eager PyTorch, where the target
  itself quantizes; None where `decoder` already is the model that the artifact must equal.

A target may have a fifth, for `parity --trace`: `lower_tapped(decoder, recipe, folder, stage) -> Lowered`, the explicit
form whose method has an output `tap:<point>` for what goes into and comes out of the decoder's modules (`point_name`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from lfm2_export.artifact.manifest import MethodSpec, Npu
from lfm2_export.errors import RecipeError
from lfm2_export.quantize.calibration import Windows

if TYPE_CHECKING:
    from lfm2_export.checkpoint.config import LFM2Config
    from lfm2_export.model.decoder import Decoder
    from lfm2_export.recipes import Recipe

Stage = Callable[[str], None]
Methods = Mapping[str, Callable[..., Any]]  # name → the method's function of its input tensors


class Lowered(NamedTuple):
    """What a lowering made, as the manifest records it."""

    methods: list[MethodSpec]
    transport: Literal["slice", "inplace"]
    cache_layout: Literal["heads-time", "time-heads"]
    versions: dict[str, str]
    runtime_requirement: str
    npu: Npu | None = None


class Target(Protocol):
    def check(self, recipe: Recipe, config: LFM2Config) -> None: ...

    def lower(self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows = ()) -> Lowered: ...

    def weights_error(self, decoder: Decoder, folder: Path) -> float | None: ...

    def reference(self, decoder: Decoder, recipe: Recipe, windows: Windows) -> Methods | None: ...


class Tapping(Protocol):
    def lower_tapped(self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage) -> Lowered: ...


def names() -> list[str]:
    """Every target, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def tapping(name: str) -> Tapping | None:
    """The target of that name if it can lower a network with its points as outputs."""
    target = find(name)
    return cast(Tapping, target) if hasattr(target, "lower_tapped") else None


def find(name: str) -> Target:
    """The target of that name. RecipeError for an unknown one."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}; known: {', '.join(names())}")
    return cast(Target, importlib.import_module(f"{__name__}.{name}"))
