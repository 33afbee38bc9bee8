"""A figure as a PNG or SVG file, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lfm2_export.environment.extras import require
from lfm2_export.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg")


def check(path: Path, force: bool) -> None:
    """Refuse, before anything is measured, a file that cannot or may not be written: raise UsageError.

    Raise MissingDependencyError where matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--plot {path}: expected a name that ends in {' or '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"--plot {path}: exists already; choose another name or pass --force to replace it")
    require("matplotlib", "matplotlib", "report", f"--plot {path}")


def write(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the name's ending says. Raise UsageError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=150)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
