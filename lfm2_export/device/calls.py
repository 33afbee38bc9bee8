"""What the phone is asked, as raw files: calls of the artifact, each from the reference's own state.

ExecuTorch's runner executes one call per line of an input list and keeps nothing between them, so a conversation
cannot run on it. Each call is therefore *teacher-forced*: it starts from the state that the reference reached on this
machine, and what it gives is compared with what the reference made of the same call. That is no weaker a proof of the
program: if every call from a right state gives right logits and a right new state, a conversation does so step by step.
What it leaves out is how errors grow over a conversation, which `parity` measures here, and, where the state is written
in place, the written state: the runner returns outputs only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import MethodSpec

FOLDER = "calls"  # of raw files, on the phone and here


@dataclass(frozen=True)
class Call:
    """One call of `tokens` valid tokens: the method's inputs in its order, and the reference's outputs by name."""

    name: str
    tokens: int
    inputs: list[Tensor] = field(repr=False)
    expected: dict[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Batch:
    """Calls of one method with the same number of rows: one run of the runner."""

    method: MethodSpec
    rows: int
    calls: list[Call]


def write(batch: Batch, folder: Path, list_name: str) -> None:
    """The batch's inputs as raw files, named by their content so that equal ones exist once, and the list of them.

    Beside the list `<list>.in` and `<list>.out` give the shapes of this run, which the runner wants to know where the
    program leaves the number of tokens open.
    """
    lines = [" ".join(_write_raw(tensor, folder) for tensor in call.inputs) for call in batch.calls]
    (folder / list_name).write_text("".join(f"{line}\n" for line in lines), newline="\n")
    for suffix, specs in (("in", batch.method.inputs), ("out", batch.method.outputs)):
        shapes = [[batch.rows if isinstance(size, str) else size for size in spec.shape] for spec in specs]
        text = "".join(", ".join(map(str, shape)) + "\n" for shape in shapes)
        (folder / f"{list_name}.{suffix}").write_text(text, newline="\n")


def valid(name: str, output: np.ndarray, tokens: int) -> np.ndarray:
    """An output without what padding made: of new keys and values `[1, kv_heads, N, head_dim]`, only valid columns."""
    return output[:, :, :tokens] if name.startswith(("new_key.", "new_value.")) else output


def cut(tokens: Sequence[int], chunk: int, steps: int, window: int) -> list[tuple[str, Sequence[int]]]:
    """Return the named calls: two prefill chunks, the second on top of the first, then `steps` single tokens."""
    chunk = max(1, min(chunk, (min(window, len(tokens)) - 1) // 2))
    steps = min(steps, window - 2 * chunk, len(tokens) - 2 * chunk)
    chunks = [(f"prefill {i}", tokens[i * chunk : (i + 1) * chunk]) for i in range(2)]
    return chunks + [(f"decode {i}", tokens[2 * chunk + i : 2 * chunk + i + 1]) for i in range(steps)]


def _write_raw(tensor: Tensor, folder: Path) -> str:
    """The file's path on the phone, relative to where the runner starts."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.raw"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return f"{FOLDER}/{name}"
