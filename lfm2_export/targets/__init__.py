"""Lowerings, one folder each, found by its name: `targets/<name>/target.py` holds the `Target` and calls it TARGET."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

from lfm2_export.errors import RecipeError
from lfm2_export.targets.target import Lowered, Methods, Stage, Target

__all__ = ["Lowered", "Methods", "Stage", "Target", "find", "names"]


def names() -> list[str]:
    """Every target, by name: the folders here that hold a `target.py`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _is_target(module))


def _is_target(module: pkgutil.ModuleInfo) -> bool:
    return module.ispkg and importlib.util.find_spec(f"{__name__}.{module.name}.target") is not None


def find(name: str) -> Target:
    """Return the target of that name. Raises RecipeError for an unknown one."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}; known: {', '.join(names())}")
    found = importlib.import_module(f"{__name__}.{name}.target").TARGET
    assert isinstance(found, Target)
    return found
