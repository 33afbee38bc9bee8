"""What became of the cells: one outcome each, and the matrix that they make."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import BaseModel, computed_field

from lfm2_export.artifact.manifest import GateResult
from lfm2_export.errors import UNPROVEN
from lfm2_export.matrix.inputs import Inputs
from lfm2_export.parity.report import ParityReport, RuntimeReport

# "not meant": the plan names the runtime, and it does not run artifacts of that kind
RowStatus = Literal["pass", "fail", "skipped", "not meant"]
Status = Literal["waiting", "begun", "proven", "not proven", "failed", "excluded"]


class Row(BaseModel):
    """One cell through one runtime."""

    runtime: str
    status: RowStatus
    reason: str | None = None  # of what is no pass
    stands_in: bool = False
    mean_kld: float | None = None  # nats per token, from fp32
    top1: float | None = None
    gates: dict[str, int] = {}  # status → how many

    @classmethod
    def of(cls, report: RuntimeReport) -> Row:
        """Return what a table shows of a proof through one runtime."""
        failed = [gate for gate in report.gates if gate.status == "fail"]
        quality = report.quality
        return cls(
            runtime=report.runtime,
            status=cast(RowStatus, report.status),
            reason=_told(failed) if failed else report.reason,
            stands_in=report.stands_in,
            mean_kld=None if quality is None else float(f"{quality.mean_kld:.3g}"),
            top1=None if quality is None else float(f"{quality.top1:.4g}"),
            gates={
                status: sum(gate.status == status for gate in report.gates) for status in ("pass", "fail", "skipped")
            },
        )


class Outcome(BaseModel):
    """What became of one cell."""

    generator: Literal["lfm2-export"] = "lfm2-export"  # first: what a later run knows its own files by
    cell: str
    checkpoint: str
    recipe: str
    status: Status
    reason: str | None = None  # of what is not proven
    kept: bool = False  # stood already, made from the same
    random_weights: bool = False
    size_bytes: int | None = None  # of what ships
    rows: list[Row] = []
    report: str | None = None  # the cell's page, relative to the matrix's
    machine: str | None = None
    seconds: float | None = None
    manifest_sha256: str | None = None
    inputs: Inputs | None = None

    @property
    def passed(self) -> bool:
        return self.status == "proven"


class Matrix(BaseModel):
    """Every cell of a plan."""

    generator: Literal["lfm2-export"] = "lfm2-export"
    plan: str
    effort: str
    cells: list[Outcome]

    def of(self, *statuses: Status) -> list[Outcome]:
        """Return the cells of those statuses."""
        return [cell for cell in self.cells if cell.status in statuses]

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own documented spelling
    @property
    def passed(self) -> bool:
        """Tell whether something was proven, and everything but what the plan excludes."""
        return bool(self.of("proven")) and len(self.of("proven", "excluded")) == len(self.cells)

    @property
    def exit_code(self) -> int:
        """Return 1 where a cell failed or was left undone, 3 where nothing failed and not all is proven."""
        if self.passed:
            return 0
        return 1 if self.of("failed", "waiting", "begun") else UNPROVEN

    @property
    def verdict(self) -> str:
        """Return how many cells came out how, in a line."""
        order: tuple[Status, ...] = ("proven", "failed", "not proven", "excluded", "begun", "waiting")
        counts = {status: len(self.of(status)) for status in order}
        return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def judged(report: ParityReport, asked: tuple[str, ...]) -> tuple[Status, str | None]:
    """Return a cell's status, and the reason of one that is not proven; `asked` are the runtimes that the plan names.

    What the plan names must have been asked: a runtime that is absent proves nothing.
    """
    for row in map(Row.of, report.runtimes):
        if row.status == "fail":
            return "failed", row.reason
    if not report.passed:
        return "not proven", report.unproven or "no runtime could run it"
    for runtime in report.runtimes:
        if runtime.runtime.partition("/")[0] in asked and runtime.status == "skipped":
            return "not proven", f"{runtime.runtime}: {runtime.reason}"
    return "proven", None


def _told(failed: list[GateResult]) -> str:
    first, more = failed[0], len(failed) - 1
    told = f"{first.runtime}: {first.name} is {first.value}, the limit is {first.limit}"
    return f"{told} (and {more} more)" if more else told
