"""One contender, measured once over, in a fresh process: a JSON job on stdin, its result on stdout."""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from lfm2_export.bench import child
from lfm2_export.bench.contenders import Contender, Drafting, InOwnProcess, Memory, find
from lfm2_export.bench.drafted import Drafted
from lfm2_export.bench.quiet import Samples, collect
from lfm2_export.bench.spec import Spec
from lfm2_export.runtimes import _huge_pages

_PREFILLS = 2  # samples per length and round


class Job(BaseModel):
    """The measurements to take. Context c: the last of `steps` single tokens is the c-th of the conversation."""

    spec: Spec
    contexts: list[int]
    prefill: list[int]
    threads: int
    steps: int
    profile: bool = False  # whether to look into a decode step as well
    seed: int = 0

    @property
    def room(self) -> int:
        """Most tokens any conversation of this job holds."""
        return max(*self.contexts, *self.prefill, _longest_warm_up(self))


class Point(BaseModel):
    """One context or length: seconds per token, or nothing where the window is too small."""

    tokens: int
    seconds_per_token: list[float]
    noisy: int  # samples during which others used the machine
    all_noisy: bool  # so that noisy ones had to be used


class Result(BaseModel):
    """All of one contender, once over. Bytes and seconds."""

    runtime: str
    window: int
    size: int
    weight_bytes: int | None
    cache_bytes: int | None
    load_seconds: float  # until the first token's logits are there
    baseline_rss: int  # after importing the library, before the model
    peak_rss: int  # after loading, the longest prompt and a few steps
    decode: list[Point]
    prefill: list[Point]
    drafted: Drafted | None = None
    stages: dict[str, float] | None = None  # share of a decode step at the longest context that each stage takes


def measure(job: Job) -> Result:
    """Run the job in a process of its own; ArtifactError when that fails."""
    return Result.model_validate_json(child.call(__name__, job.model_dump_json(), job.spec.name))


def _work(job: Job) -> Result:
    child.bind(job.threads)
    kind = find(job.spec.kind)
    kind.prepare(job.spec, job.threads)
    baseline = _resident()
    started = time.perf_counter()
    contender = kind.load(job.spec, job.threads, job.room)
    contender.feed([0])  # some runtimes load a file's methods only when they are called
    loaded = time.perf_counter() - started
    tokens = _tokens(job, contender)
    _warm_up(contender, job, tokens)
    _huge_pages.wait()  # or the first figures would tell who allocated less
    # before positions are restored from copies, which only a benchmark does
    memory = contender.memory() if isinstance(contender, InOwnProcess) else Memory(baseline, _peak())
    return Result(
        runtime=contender.runtime,
        window=contender.window,
        size=contender.size,
        weight_bytes=contender.weight_bytes,
        cache_bytes=contender.cache_bytes,
        load_seconds=loaded,
        baseline_rss=memory.baseline,
        peak_rss=memory.peak,
        prefill=[_prefill(contender, length, tokens) for length in job.prefill],
        decode=[_decode(contender, context, job.steps, tokens) for context in sorted(job.contexts)],
        drafted=_drafted(contender, job.spec.draft),
        stages=_stages(contender, job) if job.profile else None,
    )


def _longest_warm_up(job: Job) -> int:
    return max(job.prefill) + job.steps


def _warm_up(contender: Contender, job: Job, tokens: list[int]) -> None:
    fitting = [length for length in job.prefill if length < contender.window]
    contender.stand(0)
    contender.feed(tokens[: max(fitting, default=1)])
    for token in tokens[: min(job.steps, contender.window - max(fitting, default=1))]:
        contender.feed([token])


def _prefill(contender: Contender, length: int, tokens: list[int]) -> Point:
    if length > contender.window:
        return Point(tokens=length, seconds_per_token=[], noisy=0, all_noisy=False)

    def sample() -> float:
        contender.stand(0)
        started = time.perf_counter()
        contender.feed(tokens[:length])
        return (time.perf_counter() - started) / length

    return _point(length, collect(sample, _PREFILLS))


def _decode(contender: Contender, context: int, steps: int, tokens: list[int]) -> Point:
    if context > contender.window:
        return Point(tokens=context, seconds_per_token=[], noisy=0, all_noisy=False)
    steps = min(steps, context)

    def sample() -> float:
        contender.stand(context - steps)
        durations = []
        for token in tokens[:steps]:
            started = time.perf_counter()
            contender.feed([token])
            durations.append(time.perf_counter() - started)
        return statistics.median(durations)

    return _point(context, collect(sample, wanted=1))


def _stages(contender: Contender, job: Job) -> dict[str, float] | None:
    fitting = [context for context in job.contexts if context <= contender.window]
    return contender.stages(max(fitting), min(job.steps, max(fitting))) if fitting else None


def _drafted(contender: Contender, draft: str | None) -> Drafted | None:
    return contender.drafted(draft) if draft is not None and isinstance(contender, Drafting) else None


def _point(tokens: int, samples: Samples) -> Point:
    used = samples.quiet or samples.noisy
    return Point(tokens=tokens, seconds_per_token=used, noisy=len(samples.noisy), all_noisy=not samples.quiet)


def _tokens(job: Job, contender: Contender) -> list[int]:
    """Random ids, the same for every contender of one vocabulary."""
    draw = random.Random(job.seed)
    return [draw.randrange(contender.vocab) for _ in range(max(*job.prefill, job.steps))]


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    """This process's own peak. On Linux not ru_maxrss, which begins with the parent's."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    child.answer(lambda request: _work(Job.model_validate_json(request)).model_dump_json())
