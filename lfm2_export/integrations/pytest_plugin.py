"""A pytest plugin: a fixture that exports a checkpoint and proves it, so that a team's own tests guard its model.

    def test_my_model_survives_int4(lfm2_prove):
        proof = lfm2_prove("./my-lfm2", "xnnpack-int4", "window=1024")
        assert proof.report.runtimes[0].quality.mean_kld < 0.1

A failed gate fails the test, with the gates in its message; the figures go into JUnit's properties. `--lfm2-reports
FOLDER` writes each proof as HTML, Markdown and JSON too, `--lfm2-effort quick` measures less. Same checkpoint, recipe
and overrides: exported once a run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from lfm2_export.artifact.folder import Artifact
    from lfm2_export.artifact.manifest import Extent
    from lfm2_export.parity.report import ParityReport


class Proof(NamedTuple):
    """An artifact, which lives as long as the test run, and what was measured of it."""

    artifact: Artifact
    report: ParityReport


Prove = Callable[..., Proof]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lfm2-export")
    group.addoption("--lfm2-reports", type=Path, default=None, help="Folder for the reports of lfm2_prove.")
    group.addoption("--lfm2-effort", choices=("full", "quick"), default="full", help="How much lfm2_prove measures.")


@pytest.fixture(scope="session")
def _lfm2_proofs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Prove:
    """(source, recipe, overrides) → proof, each made once; a failure is remembered as well."""
    done: dict[tuple[str, ...], Proof | Exception] = {}
    folder: Path | None = pytestconfig.getoption("--lfm2-reports")
    effort: Extent = pytestconfig.getoption("--lfm2-effort")

    def prove(source: str, recipe: str, *overrides: str) -> Proof:
        key = (source, recipe, *overrides)
        if key not in done:
            output = tmp_path_factory.mktemp("lfm2") / Path(recipe).stem
            done[key] = _proof(source, recipe, overrides, output, effort, folder, number=len(done) + 1)
        found = done[key]
        if isinstance(found, Exception):
            raise found
        return found

    return prove


@pytest.fixture
def lfm2_prove(_lfm2_proofs: Prove, record_property: Callable[[str, object], None]) -> Prove:
    """Call `lfm2_prove(source, recipe, *overrides)` to export and prove; a failed gate fails the test."""
    from lfm2_export.errors import Lfm2ExportError
    from lfm2_export.parity.report import ParityReport

    def prove(source: str | Path, recipe: str = "xnnpack-int8", *overrides: str) -> Proof:
        try:
            found = _lfm2_proofs(str(source), recipe, *overrides)
        except Lfm2ExportError as error:
            report = getattr(error, "report", None)
            gates = _gates(report) if isinstance(report, ParityReport) else []
            pytest.fail("\n".join([str(error), *gates]), pytrace=False)
        for gate in found.report.gates:
            record_property(f"{recipe}: {gate.runtime}: {gate.name}", gate.status if gate.value is None else gate.value)
        return found

    return prove


def _proof(
    source: str,
    recipe: str,
    overrides: tuple[str, ...],
    output: Path,
    effort: Extent,
    folder: Path | None,
    number: int,
) -> Proof | Exception:
    from lfm2_export.errors import GateError, Lfm2ExportError
    from lfm2_export.parity.detail import Detail
    from lfm2_export.pipeline import ParityError, export
    from lfm2_export.report import outputs

    paths: list[Path] = []
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{number}-{output.name}{suffix}" for suffix in (".html", ".md", ".json")]
            outputs.check(paths, force=True)
        detail = Detail() if paths else None
        artifact, report = export(source, recipe, output, overrides=overrides, effort=effort, detail=detail)
    except ParityError as failure:
        outputs.write(failure.report, paths, force=True)
        return failure
    except Lfm2ExportError as error:
        return error
    assert report is not None  # it was asked to prove
    outputs.write(report, paths, force=True)
    if report.unproven is not None:
        return GateError(f"not proven on this machine: {report.unproven}")
    return Proof(artifact, report)


def _gates(report: ParityReport) -> list[str]:
    return [
        f"  {gate.status:7} {gate.runtime}: {gate.name} {gate.value} (limit {gate.limit}) {gate.reason or ''}".rstrip()
        for gate in report.gates
    ]
