"""Whether the machine was ours while a sample was taken: other processes' CPU time, and time stolen by a hypervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_LIMIT = 0.05  # share of the machine's CPU time
_TICK = 0.02  # seconds: the kernel counts in ticks of 10 ms, and both ends may be off by one
_RETRIES = 3  # noisy samples taken again, per point and round


@dataclass
class Samples:
    """Seconds per sample. Noisy ones are kept apart, and used only when there was no quiet one."""

    quiet: list[float] = field(default_factory=list)
    noisy: list[float] = field(default_factory=list)


def collect(sample: Callable[[], float], wanted: int) -> Samples:
    """Call `sample` (it returns seconds) until `wanted` calls were quiet, or for three calls more than that."""
    samples = Samples()
    for _ in range(wanted + _RETRIES):
        before, own, clock = _busy(), _own(), time.perf_counter()
        seconds = sample()
        wall = time.perf_counter() - clock
        others = _busy() - before - (_own() - own)
        (samples.noisy if others > _LIMIT * wall * _cores() + _TICK else samples.quiet).append(seconds)
        if len(samples.quiet) == wanted:
            break
    return samples


def _busy() -> float:
    """Seconds of CPU time, all cores together, that were not idle."""
    import psutil

    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own() -> float:
    """Seconds of CPU time of this process and of those that it started: a model may live in one of them."""
    import psutil

    children = (child.cpu_times() for child in psutil.Process().children())
    return time.process_time() + sum(times.user + times.system for times in children)


def _cores() -> int:
    import psutil

    return int(psutil.cpu_count())


def available_cores() -> list[int]:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
