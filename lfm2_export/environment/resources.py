"""What work needs of a machine, and how much of it is worth using."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import UsageError
from lfm2_export.model.load import tensor_shapes
from lfm2_export.quantize.scheme import Rules, has_integers
from lfm2_export.quantize.size import ROOM, model_bytes

_SMALL = 100_000_000  # parameters up to which a second thread costs more than it brings, the more so on a busy machine
_LIBRARIES = 1_100_000_000  # bytes: PyTorch, ExecuTorch and the rest, with what they allocate for themselves


def parameters(config: LFM2Config | VisionConfig) -> int:
    """Return the number of a model's parameters, or of its image part's; a tied head counts once."""
    return sum(map(math.prod, tensor_shapes(config).values()))


def threads_worth(config: LFM2Config) -> int:
    """Return how many threads a model of that shape is worth on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if parameters(config) <= _SMALL else cores


@contextmanager
def torch_threads(config: LFM2Config) -> Iterator[None]:
    """Let PyTorch use as many threads as the model's size is worth, for the length of the block.

    It is never given more than it had: a user's OMP_NUM_THREADS holds.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads_worth(config)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def proof_bytes(config: LFM2Config, rules: Rules) -> int:
    """Estimate the most memory that an export with its proof takes: the quantized model unpacked to fp32, or what of it
    has room so and the rest in bytes, beside the artifact in a runtime."""
    weights = 4 * parameters(config)
    if has_integers(rules):
        weights = min(weights, ROOM) + max(0, weights - ROOM) // 3  # a byte and its share of a scale instead of four
    return weights + 2 * model_bytes(config, rules) + _LIBRARIES


def check_memory(config: LFM2Config, rules: Rules, instead: str = "export with --no-verify here and run") -> None:
    """Refuse a proof that this machine has too little free memory for, before any work. Raises UsageError.

    `instead` begins the advice, which goes on with where to run `lfm2-export parity`.
    """
    needed, free = proof_bytes(config, rules), available_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"a proof of this model takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            f"{instead} `lfm2-export parity` on a larger machine, or close other programs"
        )


def available_memory() -> int | None:
    """Return the bytes that a new process could take without swapping; None where the system does not say."""
    try:
        found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
