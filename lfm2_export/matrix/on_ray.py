"""Cells made on the machines of a Ray cluster, each in a process of its own.

Every machine has the same files under the same paths: the folder that cells are written to, the working folder, and
local checkpoints. A cell asks for the memory that it takes, so no machine is given more of them than it holds, and for
a GPU or a phone (a resource called "phone") where its plan needs one. A machine that dies takes no cell with it: Ray
runs it again on another.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfm2_export.errors import UsageError, one_line
from lfm2_export.files import links
from lfm2_export.matrix.folder import Folder
from lfm2_export.matrix.make import Job, described, failed, make
from lfm2_export.matrix.outcome import Outcome
from lfm2_export.progress import Progress, silent

_RETRIES = 3  # of a cell whose process or machine died
_LOOK = 5.0  # seconds between two looks at what the cluster can still do
_PATIENCE = 60.0  # seconds that a cell waits for a machine that could hold it


def made_on_ray(
    work: Iterable[Job | Outcome], folder: Folder, address: str, progress: Progress
) -> Generator[Outcome, None, None]:
    """Yield what is settled already, then of every job what became of it, in the order of their ends.

    `address` is that of a cluster, or one of Ray's own words: "auto" is the one that this machine is part of, "local"
    one of this machine alone, which ends with the block. Raises UsageError where there is no cluster.
    """
    with _cluster(address) as ray, folder.shared() as mark:
        submit = ray.remote(max_calls=1, max_retries=_RETRIES)(_remote)  # one cell a process: it gives its memory back
        pending: dict[Any, Job] = {}
        for each in work:
            if isinstance(each, Outcome):
                yield each
                continue
            asked = {
                "num_cpus": each.cpus,
                "num_gpus": each.gpus,
                "memory": each.memory,
                "resources": {"phone": each.phones},
            }
            pending[submit.options(**asked).remote(each, mark, str(Path.cwd()), links.followed())] = each
        progress(f"to be made: {len(pending)}; machines: {sum(node['Alive'] for node in ray.nodes())}")
        yield from _results(ray, pending)


def _results(ray: Any, pending: dict[Any, Job]) -> Iterator[Outcome]:
    """The outcome of each as it comes; of one that no machine can hold, after a while, that it could not be made."""
    unfit_since: dict[Any, float] = {}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK)
        for result in ready:
            yield _outcome(ray, result, pending.pop(result))
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for result, job in list(pending.items()):
            if (lacking := _lacking(job, machines)) is None:
                unfit_since.pop(result, None)
            elif time.monotonic() - unfit_since.setdefault(result, time.monotonic()) > _PATIENCE:
                ray.cancel(result, force=True)
                yield _unmade(pending.pop(result), lacking)


def _outcome(ray: Any, result: Any, job: Job) -> Outcome:
    try:
        outcome = ray.get(result)
        assert isinstance(outcome, Outcome)
        return outcome
    except ray.exceptions.RayTaskError as error:
        return failed(job.cell, error.cause)
    except ray.exceptions.RayError as error:
        return _unmade(job, f"its process died {_RETRIES + 1} times, the last time: {one_line(error)}")


def _unmade(job: Job, reason: str) -> Outcome:
    return described(job.cell).model_copy(update={"status": "failed", "reason": reason})


def _lacking(job: Job, machines: Iterable[Mapping[str, float]]) -> str | None:
    """What a cell asks for, where no machine has it all."""
    asked = {"CPU": job.cpus, "memory": job.memory, "GPU": job.gpus, "phone": job.phones}
    if any(all(machine.get(name, 0) >= amount for name, amount in asked.items()) for machine in machines):
        return None
    more = "".join(f" and a {name}" for name in ("GPU", "phone") if asked[name])
    return f"no machine of the cluster has {job.cpus} processors, {job.memory / 1e9:.1f} GB of memory{more}"


def _remote(job: Job, mark: str, folder: str, follow_links: bool) -> Outcome:
    """Make a cell, on one of the machines."""
    import ray

    machine = f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:8]}"
    if not Path(folder).is_dir():
        return _unmade(job, f"{machine} has no folder {folder}; every machine needs the same files")
    os.chdir(folder)
    if not job.folder.sees(mark):
        return _unmade(job, f"{machine} does not see {job.folder.path.resolve()}; every machine needs the same folder")
    if not job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what was not asked for may be another's
    if follow_links:
        links.follow()
    return make(job, silent, machine)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected. What it starts on this machine ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    with _own_signals():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"--ray {address}: no cluster there: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it begins: give it back to who had it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
