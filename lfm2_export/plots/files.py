"""A figure as a PNG or SVG file, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lfm2_export.errors import UsageError
from lfm2_export.extras import require
from lfm2_export.files import check_free_file, marked, staged_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = "lfm2-export"
_MARKS = {".png": {"Software": _NAME}, ".svg": {"Creator": _NAME, "Date": None}}  # metadata, by suffix
_KINDS = {
    ".png": marked("… --plot", b"Software\0" + _NAME.encode(), 100),
    ".svg": marked("… --plot", f"<dc:title>{_NAME}</dc:title>".encode(), 2000),
}


def check(path: Path, force: bool) -> None:
    """Refuse, before anything is measured, a file that cannot or may not be written: raise UsageError.

    Raise MissingDependencyError where matplotlib is not installed.
    """
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"--plot {path}: expected a name that ends in {' or '.join(_KINDS)}")
    check_free_file(path, force, _KINDS[path.suffix.lower()])
    require("matplotlib", "matplotlib", "report", f"--plot {path}")


def write(figure: Figure, path: Path, force: bool = False) -> None:
    """Write the figure in the format that the name's ending says. Raise UsageError when the disk refuses."""
    suffix = path.suffix.lower()
    with staged_file(path, force, _KINDS[suffix]) as new:
        figure.savefig(new, format=suffix[1:], dpi=150, metadata=_MARKS[suffix])
