"""Lowerings, one folder each, found by its name: `targets/<name>/target.py` holds the `Target` and calls it TARGET."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

from lfm2_export.errors import RecipeError, nearest
from lfm2_export.targets.capabilities import Capabilities
from lfm2_export.targets.target import Lowered, Methods, Target

__all__ = ["Lowered", "Methods", "Target", "capabilities", "find", "names", "with_images"]


def names() -> list[str]:
    """Return every target by name: the folders here that hold a `target.py`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg and _is_target(module.name))


def capabilities(name: str) -> Capabilities:
    """Return what the target of that name can store and compute; no library of the target is imported."""
    found = importlib.import_module(f"{__name__}.{name}.capabilities").CAPABILITIES
    assert isinstance(found, Capabilities)
    return found


def with_images(family: str) -> list[str]:
    """Return the targets, by name, that write the image part of vision-language models of that `model_type`."""
    return [name for name in names() if family in capabilities(name).images]


def find(name: str) -> Target:
    """Return the target of that name. Raises RecipeError for an unknown one."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}{nearest(name, names())}; known: {', '.join(names())}")
    found = importlib.import_module(f"{__name__}.{name}.target").TARGET
    assert isinstance(found, Target)
    return found


def _is_target(name: str) -> bool:
    return importlib.util.find_spec(f"{__name__}.{name}.target") is not None
