"""A benchmark, top to bottom: rounds in which every contender has its turn, so that a drift of the machine hits all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from lfm2_export.bench import bandwidth
from lfm2_export.bench.loss import HeldOut, loss
from lfm2_export.bench.quiet import available_cores
from lfm2_export.bench.report import BenchReport, Spread, summarize
from lfm2_export.bench.spec import Spec, distinct
from lfm2_export.bench.worker import Job, Result, measure
from lfm2_export.environment.machine import machine
from lfm2_export.errors import UsageError
from lfm2_export.extras import require
from lfm2_export.progress import Progress, silent

_LIBRARIES = (
    "lfm2-export",
    "torch",
    "executorch",
    "onnxruntime",
    "onnxruntime-genai",
    "transformers",
    "llama-cpp-python",
)


def bench(
    specs: Sequence[Spec],
    contexts: Sequence[int],
    prefill: Sequence[int],
    *,
    threads: int | None = None,
    rounds: int = 3,
    steps: int = 32,
    text: HeldOut | None = None,
    progress: Progress = silent,
) -> BenchReport:
    """Measure `specs` side by side on `threads` threads (None: every core this process may use).

    `contexts` and `prefill` are numbers of tokens; a context is that of the last of `steps` single tokens. With `text`
    each is also held against fp32 on it, once, in a process of its own. Raises
    UsageError for numbers that make no sense, MissingDependencyError without psutil, ArtifactError when a contender
    cannot be run.
    """
    require("psutil", "psutil", "bench", "a benchmark")
    threads = _check(contexts, prefill, threads, rounds, steps)
    specs = distinct(specs)
    bandwidths: list[float] = []
    results: list[list[Result]] = [[] for _ in specs]
    for number in range(1, rounds + 1):
        progress(f"round {number} of {rounds}: memory bandwidth")
        bandwidths.append(bandwidth.measure(threads))
        for spec, mine in zip(specs, results, strict=True):
            progress(f"round {number} of {rounds}: {spec.name}")
            job = Job(
                spec=spec,
                contexts=sorted(set(contexts)),
                prefill=sorted(set(prefill)),
                threads=threads,
                steps=steps,
                profile=number == rounds,
            )
            mine.append(measure(job))
    memory = Spread.of(bandwidths)
    contenders = summarize(specs, results, memory.max)  # a limit: what was lower was disturbed
    if text is not None:
        for spec, contender in zip(specs, contenders, strict=True):
            progress(f"against fp32 on {text.name}: {spec.name}")
            contender.loss = loss(spec, text, threads)
    return BenchReport(
        machine=machine(),
        versions={name: version for name in _LIBRARIES if (version := _version(name))},
        threads=threads,
        rounds=rounds,
        steps=steps,
        bandwidth_bytes_per_second=memory,
        contenders=contenders,
        text=text.name if text else None,
    )


def _check(contexts: Sequence[int], prefill: Sequence[int], threads: int | None, rounds: int, steps: int) -> int:
    """The number of threads. UsageError for anything that cannot be measured."""
    cores = len(available_cores())
    if threads is not None and not 1 <= threads <= cores:
        raise UsageError(f"{threads} threads: this process may use 1 to {cores} cores")
    if rounds < 1 or steps < 1:
        raise UsageError("a benchmark needs at least one round and one step")
    if not contexts or not prefill or min(*contexts, *prefill) < 1:
        raise UsageError("contexts and prefill lengths are numbers of tokens, at least one of each, 1 or more")
    return threads or cores


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
