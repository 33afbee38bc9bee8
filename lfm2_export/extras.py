"""Libraries that only some commands need: asked for by name before any work is done."""

from __future__ import annotations

from importlib.util import find_spec

from lfm2_export.errors import MissingDependencyError


def require(module: str, package: str, extra: str, who: str) -> None:
    """Raise MissingDependencyError where `module` cannot be imported.

    The message says who needs it, the package's name and the extra of lfm2-export that installs it.
    """
    if find_spec(module) is None:
        raise MissingDependencyError(f"{who} needs {package}, which is missing: pip install 'lfm2-export[{extra}]'")
