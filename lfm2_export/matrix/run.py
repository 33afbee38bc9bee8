"""A matrix, top to bottom: plan → cells → those that stand, and those to be made → pages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lfm2_export import runtimes
from lfm2_export.bench.report import BenchReport
from lfm2_export.device.reference import refusal
from lfm2_export.environment.resources import proof_bytes
from lfm2_export.errors import UsageError
from lfm2_export.extras import require
from lfm2_export.matrix import pages
from lfm2_export.matrix.folder import Folder
from lfm2_export.matrix.here import made_here
from lfm2_export.matrix.inputs import Opened
from lfm2_export.matrix.make import Job, described, failed
from lfm2_export.matrix.on_ray import made_on_ray
from lfm2_export.matrix.outcome import Matrix, Outcome
from lfm2_export.matrix.plan import Cell, CheckpointEntry, Plan, cells
from lfm2_export.progress import Progress, silent


def run(
    plan: Plan,
    name: str,
    output: Path,
    *,
    force: bool = False,
    ray: str | None = None,
    bench: BenchReport | None = None,
    progress: Progress = silent,
) -> Matrix:
    """Export and prove every cell of a plan into `output`, and write the pages after each.

    A cell that stands there, made from the same, is kept; one that was proven and is made from other inputs now is
    replaced with `force` alone. A cell that fails is an outcome like any other. `ray` is the address of a cluster to
    make them on (see `made_on_ray`); without, they are made in this process. `bench` holds speeds to show, `name` is
    the plan's on the pages.

    Raises PlanError, RecipeError and UsageError for a plan that cannot be carried out at all, MissingDependencyError
    where a library of the pages, or Ray, is absent.
    """
    for module in ("matplotlib", "junitparser"):
        require(module, module, "report", "matrix")
    if ray is not None:
        require("ray", "ray", "ray", "matrix --ray")
    asked = cells(plan)
    folder = Folder(output)
    folder.make()
    done = {cell.name: described(cell) for cell in asked}

    def matrix() -> Matrix:
        return Matrix(plan=name, effort=plan.effort, cells=list(done.values()))

    pages.check(folder.path)
    work = _work(asked, plan, folder, force, progress)
    with closing(made_here(work, progress) if ray is None else made_on_ray(work, folder, ray, progress)) as outcomes:
        for outcome in outcomes:
            done[outcome.cell] = outcome
            progress(f"{outcome.cell}: {outcome.status}; all in all: {matrix().verdict}")
            if not outcome.kept:
                pages.write(folder.path, matrix(), bench)
    pages.write(folder.path, matrix(), bench)
    return matrix()


def _work(
    asked: Sequence[Cell], plan: Plan, folder: Folder, force: bool, progress: Progress
) -> Iterator[Job | Outcome]:
    """Each cell that is left as a job, and each that is settled as its outcome, checkpoint by checkpoint."""
    opened: tuple[CheckpointEntry, Opened | Exception] | None = None  # one: a merged adapter is a whole model
    for cell in asked:
        if cell.excluded:
            yield described(cell).model_copy(update={"status": "excluded", "reason": "the plan excludes it"})
            continue
        if opened is None or opened[0] != cell.checkpoint:
            progress(f"{cell.checkpoint.called}: checking the checkpoint")
            opened = cell.checkpoint, _opened(cell.checkpoint)
        checkpoint = opened[1]
        settled: Job | Outcome
        try:
            if isinstance(checkpoint, Exception):
                settled = failed(cell, checkpoint)
            else:
                settled = _job_or_kept(cell, checkpoint, plan, folder, force)
        except Exception as error:  # of one checkpoint: the others go on
            settled = failed(cell, error)
        yield settled


def _opened(entry: CheckpointEntry) -> Opened | Exception:
    try:
        return Opened(entry)
    except Exception as error:
        return error


def _job_or_kept(cell: Cell, opened: Opened, plan: Plan, folder: Folder, force: bool) -> Job | Outcome:
    inputs = opened.inputs(cell, plan)
    before = folder.read(cell.name)
    if before is not None and before.status in ("proven", "not proven") and folder.stands(before):
        changed = inputs.changed_from(before.inputs)
        if not changed:
            return before.model_copy(update={"kept": True})
        if before.passed and not force:
            raise UsageError(
                f"{folder.artifact(cell.name)} was made from other inputs ({', '.join(changed)}); "
                "--force makes it again"
            )
    elif before is None and os.path.lexists(artifact := folder.artifact(cell.name)) and not force:
        raise UsageError(f"{artifact} exists and is none of this matrix's; move it elsewhere, or --force replaces it")
    recipe = opened.recipe(cell)
    meant = [found for found in map(runtimes.find, plan.runtimes) if recipe.target in found.targets]
    return Job(
        cell=cell,
        inputs=inputs,
        folder=folder,
        force=force,
        memory=proof_bytes(opened.config, recipe.quantization),
        cpus=plan.cpus,
        gpus=int(any(found.computes_on == "GPU" for found in meant)),
        phones=int(plan.phone is not None and refusal(recipe.target, recipe.form) is None),
    )
