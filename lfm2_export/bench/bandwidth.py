"""How fast this machine reads memory with a given number of threads: what a decode step is held against.

Measured in the same run as everything else, in a process of its own: it drifts with the neighbours.
"""

from __future__ import annotations

import json
import sys
import time

from lfm2_export.bench import child
from lfm2_export.bench.quiet import collect

_BYTES = 512 << 20  # many times any last-level cache of a machine this runs on
_READS = 8


def measure(threads: int) -> float:
    """Bytes per second, the best of several sums over a large buffer."""
    return float(json.loads(child.call(__name__, json.dumps(threads), "memory bandwidth")))


def _serve() -> None:
    threads = json.load(sys.stdin)
    child.bind(threads)
    import torch

    torch.set_num_threads(threads)
    numbers = torch.ones(_BYTES // 8, dtype=torch.int64)  # a sum of integers costs less than reading them

    def sample() -> float:
        started = time.perf_counter()
        numbers.sum()
        return time.perf_counter() - started

    samples = collect(sample, wanted=_READS)
    print(json.dumps(_BYTES / min(samples.quiet + samples.noisy)), flush=True)


if __name__ == "__main__":
    _serve()
