"""A matrix as one HTML page, Markdown, JSON and JUnit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfm2_export.bench.report import BenchReport, Speed
from lfm2_export.files import check_free_file, write_text
from lfm2_export.matrix.outcome import Matrix, Outcome, Row
from lfm2_export.report.junit import text
from lfm2_export.report.outputs import KINDS
from lfm2_export.report.page import speed_charts, templates

PAGE = "index.html"
_CLASSES = {"proven": "pass", "failed": "fail", "pass": "pass", "fail": "fail"}  # the rest is "skipped", as it looks


def check(folder: Path) -> None:
    """Raise UsageError where one of the pages cannot be written, or another's file is in its place."""
    for name in _PAGES:
        check_free_file(folder / name, True, KINDS[Path(name).suffix])


def write(folder: Path, matrix: Matrix, bench: BenchReport | None) -> None:
    """Write every page, each whole or not at all. Needs matplotlib for speeds, and junitparser."""
    for name, page in _PAGES.items():
        write_text(folder / name, page(matrix, bench), True, KINDS[Path(name).suffix])


def html(matrix: Matrix, bench: BenchReport | None = None) -> str:
    """Return the page: checkpoints by recipes, then every cell through every runtime, then speeds."""
    speeds = list(speed_charts(bench)) if bench else []
    return _rendered("matrix.html.jinja", matrix, bench, autoescape=True, speeds=speeds)


def markdown(matrix: Matrix, bench: BenchReport | None = None) -> str:
    """Return the Markdown that fits into a CI job's summary."""
    return _rendered("matrix.md.jinja", matrix, bench, autoescape=False)


def junit(matrix: Matrix, bench: BenchReport | None = None) -> str:
    """Return JUnit XML: a suite per checkpoint, a test per cell and runtime. Only what was proven is a passed test."""
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    document = JUnitXml("lfm2-export matrix")
    for checkpoint, cells in _by_checkpoint(matrix).items():
        suite = TestSuite(text(checkpoint))
        suite.add_property("plan", text(matrix.plan))
        suite.add_property("effort", matrix.effort)
        for cell in cells:
            case = TestCase("cell", classname=text(cell.cell), time=cell.seconds)
            if cell.status == "failed":
                case.result = [Failure(text(cell.reason or "failed"))]
            elif cell.status != "proven":
                case.result = [Skipped(text(cell.reason or cell.status))]
            suite.add_testcase(case)
            for row in cell.rows:
                case = TestCase(text(row.runtime), classname=text(cell.cell))
                if row.status == "fail":
                    case.result = [Failure(text(row.reason or "failed"))]
                elif row.status != "pass" or row.stands_in:
                    case.result = [Skipped(text(row.reason or _told(row)))]
                suite.add_testcase(case)
        document.add_testsuite(suite)
    document.update_statistics()
    return str(document.tostring().decode("utf-8")) + "\n"


def _json(matrix: Matrix, bench: BenchReport | None) -> str:
    return matrix.model_dump_json(indent=2) + "\n"


_PAGES: dict[str, Callable[[Matrix, BenchReport | None], str]] = {
    "matrix.json": _json,
    "matrix.md": markdown,
    "junit.xml": junit,
    PAGE: html,
}


def _rendered(template: str, matrix: Matrix, bench: BenchReport | None, *, autoescape: bool, **more: object) -> str:
    environment = templates(autoescape)
    environment.filters |= {"state": _state, "told": _told, "kld": _kld}
    recipes = list(dict.fromkeys(cell.recipe for cell in matrix.cells))
    grid = {
        checkpoint: [next((cell for cell in cells if cell.recipe == recipe), None) for recipe in recipes]
        for checkpoint, cells in _by_checkpoint(matrix).items()
    }
    return environment.get_template(template).render(
        m=matrix, grid=grid, recipes=recipes, decode=_decodes(bench), bench=bench, **more
    )


def _by_checkpoint(matrix: Matrix) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for cell in matrix.cells:
        found.setdefault(cell.checkpoint, []).append(cell)
    return found


def _state(status: str) -> str:
    return _CLASSES.get(status, "skipped")


def _told(row: Row) -> str:
    """A row's verdict: what only stands in for an app's runtime proves nothing."""
    return "only stands in" if row.stands_in and row.status == "pass" else row.status


def _kld(cell: Outcome) -> float | None:
    """The largest mean KLD of a cell's runtimes."""
    return max((row.mean_kld for row in cell.rows if row.mean_kld is not None), default=None)


def _decodes(bench: BenchReport | None) -> dict[str, Speed]:
    """The first decode speed of each contender: `CELL`, or `CELL RUNTIME` through another runtime than its own."""
    if bench is None:
        return {}
    return {
        contender.name: speed
        for contender in bench.contenders
        for speed in contender.decode[:1]
        if speed.tokens_per_second
    }
