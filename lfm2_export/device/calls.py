"""What the phone is asked, as raw files: calls of the artifact, each from the reference's own state.

ExecuTorch's runner executes one call per line of an input list and keeps nothing between them, so a conversation
cannot run on it. Each call is therefore *teacher-forced*: it starts from the state that the reference reached on this
machine, and what it gives is compared with what the reference made of the same call. That is no weaker a proof of the
program: if every call from a right state gives right logits and a right new state, a conversation does so step by step.
What it leaves out is how errors grow over a conversation, which `parity` measures here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lfm2_export.artifact.manifest import Manifest, MethodSpec
from lfm2_export.errors import UsageError
from lfm2_export.runtimes._in_place_state import InPlaceState
from lfm2_export.runtimes.session import Session, Snapshot

FOLDER = "calls"  # of raw files, on the phone and here
_CHUNK = 16  # tokens of each prefill call


@dataclass(frozen=True)
class Call:
    """One call: its tokens, the state it starts from, and the reference's logits `[vocab]`."""

    name: str
    tokens: tuple[int, ...]
    before: Snapshot = field(repr=False)
    logits: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Batch:
    """Calls of one method with the same number of tokens: one run of the runner."""

    method: MethodSpec
    rows: int  # tokens of each call
    calls: list[Call]


def batches(manifest: Manifest, reference: Session, tokens: Sequence[int], steps: int) -> list[Batch]:
    """Two prefill chunks, the second on top of the first, then `steps` single tokens, through the one method.

    Raises UsageError for an artifact that ExecuTorch's runner cannot be asked about.
    """
    if manifest.target != "xnnpack":
        raise UsageError(f"run-on-device runs ExecuTorch artifacts of the xnnpack target, not {manifest.target!r} ones")
    if manifest.form != "explicit":
        raise UsageError("a resident form hides its state from the runner; export with --form explicit")
    method = manifest.methods[0]
    chunk = max(1, min(_CHUNK, method.max_tokens, (min(manifest.window, len(tokens)) - 1) // 2))
    steps = min(steps, manifest.window - 2 * chunk, len(tokens) - 2 * chunk)
    reference.reset()
    chunks = [_call(reference, f"prefill {i}", tokens[i * chunk : (i + 1) * chunk]) for i in range(2)]
    singles = [_call(reference, f"decode {i}", [tokens[2 * chunk + i]]) for i in range(steps)]
    return [Batch(method, chunk, chunks), Batch(method, 1, singles)]


def write(batch: Batch, folder: Path, list_name: str) -> None:
    """The batch's inputs as raw files, named by their content so that equal ones exist once, and the list of them.

    Beside the list `<list>.in` and `<list>.out` give the shapes of this run, which the runner wants to know where the
    program leaves the number of tokens open.
    """
    lines = [" ".join(_write_raw(array, folder) for array in _inputs(batch.method, call)) for call in batch.calls]
    (folder / list_name).write_text("".join(f"{line}\n" for line in lines))
    for suffix, specs in (("in", batch.method.inputs), ("out", batch.method.outputs)):
        shapes = [[batch.rows if isinstance(size, str) else size for size in spec.shape] for spec in specs]
        text = "".join(", ".join(map(str, shape)) + "\n" for shape in shapes)
        (folder / f"{list_name}.{suffix}").write_text(text)


def _call(reference: Session, name: str, tokens: Sequence[int]) -> Call:
    before = reference.state()
    return Call(name, tuple(tokens), before, reference.prefill(tokens))


def _inputs(method: MethodSpec, call: Call) -> list[np.ndarray]:
    """In the method's own order, types and layouts."""
    state = InPlaceState(method)
    state.restore(call.before)
    given = {"tokens": torch.tensor([call.tokens]), "position": torch.tensor([call.before.position]), **state.tensors}
    return [given[spec.name].view(torch.uint8).numpy() for spec in method.inputs]


def _write_raw(array: np.ndarray, folder: Path) -> str:
    """The file's path on the phone, relative to where the runner starts."""
    data = array.tobytes()
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.raw"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return f"{FOLDER}/{name}"
