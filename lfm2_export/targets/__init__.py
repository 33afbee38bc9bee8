"""Lowerings, one folder each, found by its name: `targets/<name>/target.py` holds the `Target` and calls it TARGET."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any, cast

from lfm2_export.errors import RecipeError
from lfm2_export.targets.capabilities import Capabilities
from lfm2_export.targets.target import Lowered, Methods, Stage, Target

__all__ = ["Lowered", "Methods", "Stage", "Target", "find", "names"]


_PLAIN_MODULES = {"qnn", "xnnpack"}  # not folders yet


def names() -> list[str]:
    """Every target, by name: the folders here that hold a `target.py`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _is_target(module))


def _is_target(module: pkgutil.ModuleInfo) -> bool:
    if not module.ispkg:
        return module.name in _PLAIN_MODULES
    return importlib.util.find_spec(f"{__name__}.{module.name}.target") is not None


def capabilities(name: str) -> Capabilities:
    """Return what the target of that name can store and compute; no library of the target is imported."""
    found = importlib.import_module(f"{__name__}.{name}.capabilities").CAPABILITIES
    assert isinstance(found, Capabilities)
    return found


def find(name: str) -> Target:
    """Return the target of that name. Raises RecipeError for an unknown one."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}; known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "__path__"):  # not a class yet
        return cast(Target, module)
    found = importlib.import_module(f"{__name__}.{name}.target").TARGET
    assert isinstance(found, Target)
    return found


def tapping(name: str) -> Any:
    """The module of a target that is not a class yet, if it can be tapped."""
    target: Any = find(name)
    return target if hasattr(target, "lower_tapped") else None
