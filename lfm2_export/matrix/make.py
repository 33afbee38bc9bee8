"""One cell, top to bottom: export with its proof, the plan's further runtimes, a phone, the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from lfm2_export import runtimes
from lfm2_export.artifact.folder import MANIFEST, Artifact
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import Lfm2ExportError, MissingDependencyError, PlanError, one_line
from lfm2_export.files import sha256
from lfm2_export.matrix.folder import Folder
from lfm2_export.matrix.inputs import Inputs
from lfm2_export.matrix.outcome import Outcome, Row, judged
from lfm2_export.matrix.plan import Cell, Phone
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.report import ParityReport, RuntimeReport
from lfm2_export.pipeline import ParityError, export
from lfm2_export.progress import Progress


@dataclass(frozen=True)
class Job:
    """A cell to be made, with all that another process needs for it."""

    cell: Cell
    inputs: Inputs
    folder: Folder
    force: bool  # whether what lies there may be replaced, whoever exported it
    memory: int  # bytes that it takes
    cpus: int  # on Ray; here PyTorch has what a single export has
    gpus: int
    phones: int


def make(job: Job, progress: Progress, machine: str) -> Outcome:
    """Make a cell and keep its outcome in the folder. Whatever goes wrong with it is the outcome, no exception.

    Only what ends the process (a signal, a crash) leaves the cell as "begun".
    """
    started = time.perf_counter()
    replace = job.force or job.folder.read(job.cell.name) is not None  # also that of a machine which has died since
    outcome = described(job.cell).model_copy(update={"status": "begun", "machine": machine})
    job.folder.write(outcome)
    try:
        outcome = _made(job, outcome, replace, progress)
    except Exception as error:  # a fault in one model's export must not end the others'
        outcome = failed(job.cell, error).model_copy(update={"machine": machine})
    outcome = outcome.model_copy(update={"seconds": round(time.perf_counter() - started, 1)})
    job.folder.write(outcome)
    return outcome


def described(cell: Cell) -> Outcome:
    """Return the outcome of a cell that waits."""
    return Outcome(cell=cell.name, checkpoint=cell.checkpoint.called, recipe=cell.recipe_name, status="waiting")


def failed(cell: Cell, error: Exception) -> Outcome:
    """Return the outcome of a cell that an error ended, with the error's words."""
    reason = str(error)
    if not isinstance(error, Lfm2ExportError):
        reason = f"internal error: {type(error).__name__}: {one_line(error)} (`lfm2-export --debug export` shows where)"
    return described(cell).model_copy(update={"status": "failed", "reason": reason})


def _made(job: Job, outcome: Outcome, replace: bool, progress: Progress) -> Outcome:
    cell, inputs, folder = job.cell, job.inputs, job.folder
    detail = Detail() if inputs.details else None
    rows: list[Row] = []
    try:
        artifact, report = export(
            cell.checkpoint.source,
            cell.recipe.recipe,
            folder.artifact(cell.name),
            revision=cell.checkpoint.revision,
            base=cell.checkpoint.base,
            overrides=cell.overrides,
            force=replace,
            effort=inputs.effort,
            progress=progress,
            detail=detail,
        )
        assert report is not None
        if artifact.manifest.source.weights_sha256 != inputs.weights_sha256:
            raise PlanError(f"{cell.checkpoint.source}: its weights changed while the matrix was made; run it again")
        rows = _more(job, artifact, report, detail, progress)
        made = {"manifest_sha256": sha256(artifact.folder / MANIFEST), "inputs": inputs}
    except ParityError as failure:  # nothing was written, and the report says where it failed
        report, made = failure.report, {}
    status, reason = judged(report, inputs.runtimes)
    return outcome.model_copy(
        update={
            "status": status,
            "reason": reason,
            "random_weights": report.random_weights,
            "size_bytes": report.size_bytes,
            "rows": [*map(Row.of, report.runtimes), *rows],
            "report": folder.write_report(cell.name, report),
            **made,
        }
    )


def _more(job: Job, artifact: Artifact, report: ParityReport, detail: Detail | None, progress: Progress) -> list[Row]:
    """Prove the artifact through what the plan names beside its usual runtimes, into `report`.

    Return a row for each that is not meant for such an artifact.
    """
    rows, asked = [], []
    proven = {runtime.runtime for runtime in report.runtimes}
    for name in job.inputs.runtimes:
        if (reason := runtimes.find(name).refusal(artifact.manifest)) is not None:
            rows.append(Row(runtime=name, status="not meant", reason=reason))
        elif name not in proven:
            try:
                runtimes.find(name).version()
                asked.append(name)
            except MissingDependencyError as error:
                report.runtimes.append(RuntimeReport(runtime=name, reason=str(error)))
    if not asked and job.inputs.phone is None:
        return rows
    place = job.cell.checkpoint
    checkpoint = open_checkpoint(place.source, place.revision, place.base)
    if asked:
        from lfm2_export.parity.prove import prove

        report.runtimes += prove(artifact, checkpoint, asked, job.inputs.effort, progress, detail=detail).runtimes
        again = " ".join(f"--runtime {name}" for name in asked)
        report.reproduce.append(f"{report.reproduce[-1].rpartition(' --report')[0]} {again}")
    if job.inputs.phone is not None:
        rows += _on_phone(job.inputs.phone, artifact, checkpoint, report, progress)
    return rows


def _on_phone(
    phone: Phone, artifact: Artifact, checkpoint: Checkpoint, report: ParityReport, progress: Progress
) -> list[Row]:
    from lfm2_export.device.adb import Phone as Device
    from lfm2_export.device.proof import prove_on_device
    from lfm2_export.device.reference import refusal

    if (reason := refusal(artifact.manifest.target, artifact.manifest.form)) is not None:
        return [Row(runtime="phone", status="not meant", reason=reason)]
    libraries = [Path(each) for each in phone.libraries]
    try:
        device, runner = Device(serial=phone.serial), Path(phone.runner)
        proof = prove_on_device(artifact, checkpoint, device, runner, libraries, phone.steps, progress=progress)
        report.runtimes += proof.runtimes
    except Lfm2ExportError as error:  # of the phone: what was proven here stays told
        report.runtimes.append(RuntimeReport(runtime="phone", status="fail", reason=str(error)))
    return []
