"""Which file a report becomes, by its suffix; asked before anything is measured, written when all of it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lfm2_export.bench.report import BenchReport
from lfm2_export.errors import UsageError
from lfm2_export.extras import require
from lfm2_export.files import check_free_file, marked, write_text
from lfm2_export.parity.report import ParityReport
from lfm2_export.report import junit, page

# how each begins: the templates, the JUnit document and the models of JSON reports say it
KINDS = {
    ".html": marked("… --report", b'<meta name="generator" content="lfm2-export">', 100),
    ".md": marked("… --report", b"<!-- made by lfm2-export -->"),
    ".xml": marked("… --report", b'<testsuites name="lfm2-export ', 100),
    ".json": marked("… --report", b'{\n  "generator": "lfm2-export"'),
}
_NEEDS = {".json": (), ".md": (), ".html": ("matplotlib",), ".xml": ("junitparser",)}


def check(paths: Sequence[Path], force: bool, suffixes: Sequence[str] = tuple(_NEEDS)) -> None:
    """Raise UsageError for a name that says no format or cannot be written.

    Raise MissingDependencyError where a format's library is absent.
    """
    for path in paths:
        if path.suffix not in suffixes:
            raise UsageError(f"--report {path}: expected a name that ends in {', '.join(suffixes)}")
        check_free_file(path, force, KINDS[path.suffix])
        for module in _NEEDS[path.suffix]:
            require(module, module, "report", f"--report {path}")


def wants_detail(paths: Sequence[Path]) -> bool:
    """Tell whether one of the files shows more than the gates."""
    return any(path.suffix in (".html", ".json") for path in paths)


def write(report: ParityReport, paths: Sequence[Path], bench: BenchReport | None = None, force: bool = False) -> None:
    """Each file whole or not at all. UsageError when the disk refuses."""
    for path in paths:
        if path.suffix == ".html":
            text = page.parity_html(report, bench)
        elif path.suffix == ".md":
            text = page.parity_markdown(report, bench)
        elif path.suffix == ".xml":
            text = junit.parity_junit(report)
        else:
            text = report.model_dump_json(indent=2) + "\n"
        write_text(path, text, force, KINDS[path.suffix])
