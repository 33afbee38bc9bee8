"""Which file a report becomes, by its suffix; asked before anything is measured, written when all of it is."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from lfm2_export.bench.report import BenchReport
from lfm2_export.errors import MissingDependencyError, UsageError
from lfm2_export.files import check_free_file, write_text
from lfm2_export.parity.report import ParityReport

_NEEDS = {".json": (), ".md": (), ".html": ("matplotlib",), ".xml": ("junitparser",)}
_MAX_BYTES = 64 << 20


def check(paths: Sequence[Path], force: bool, suffixes: Sequence[str] = tuple(_NEEDS)) -> None:
    """UsageError for a name that says no format or cannot be written, MissingDependencyError for a missing library."""
    for path in paths:
        if path.suffix not in suffixes:
            raise UsageError(f"--report {path}: expected a name that ends in {', '.join(suffixes)}")
        check_free_file(path, force)
        for module in _NEEDS[path.suffix]:
            require(module, f"--report {path}")


def require(module: str, why: str) -> None:
    """MissingDependencyError, with the command that installs it, when a library of the extra is absent."""
    if find_spec(module) is None:
        raise MissingDependencyError(f"{why} needs {module}; pip install 'lfm2-export[report]'")


def wants_detail(paths: Sequence[Path]) -> bool:
    """Whether one of the files shows more than the gates."""
    return any(path.suffix in (".html", ".json") for path in paths)


def write(report: ParityReport, paths: Sequence[Path], bench: BenchReport | None = None, force: bool = False) -> None:
    """Each file whole or not at all. UsageError when the disk refuses."""
    from lfm2_export.report import junit, page

    for path in paths:
        if path.suffix == ".html":
            text = page.parity_html(report, bench)
        elif path.suffix == ".md":
            text = page.parity_markdown(report, bench)
        elif path.suffix == ".xml":
            text = junit.parity_junit(report)
        else:
            text = report.model_dump_json(indent=2) + "\n"
        write_text(path, text, force)


def read_bench(path: Path | None) -> BenchReport | None:
    """What `bench --json` printed. UsageError for anything else."""
    if path is None:
        return None
    try:
        return BenchReport.model_validate_json(read_json(path))
    except ValidationError as error:
        raise UsageError(f"{path}: not a report of `lfm2-export bench --json`: {first_line(error)}") from error


def read_json(path: Path) -> bytes:
    """A report's bytes. UsageError for one that is not there or absurdly large."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"{path}: {'too large for a report' if path.is_file() else 'no such file'}")
    return path.read_bytes()


def first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'].lower()}" if where else first["msg"].lower()
