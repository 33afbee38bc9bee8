"""Conversations with a `.pte` in this process, one class for each form of an `xnnpack` artifact.

The explicit form's state lives here, in tensors that the program writes in place; the resident form keeps it inside the
loaded program, and `reset()` only goes back to position 0, exactly as the stock runners do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import PROBE, VERIFY, Manifest
from lfm2_export.errors import ArtifactError, UsageError, one_line
from lfm2_export.progress.native_output import silenced
from lfm2_export.runtimes._agreement import check_program
from lfm2_export.runtimes._huge_pages import HugePages
from lfm2_export.runtimes._in_place_state import InPlaceState
from lfm2_export.runtimes._one_thread import hold_pool_threads, one_thread
from lfm2_export.runtimes._places import SeeingSession
from lfm2_export.runtimes._pte_images import PteImages
from lfm2_export.runtimes.session import Snapshot, check_draft, check_kept, check_room


def load_library() -> Any:
    """Import ExecuTorch's `portable_lib`, with the kernels that artifacts call, and return it."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers attention and cache kernels
    from executorch.extension.pybindings import portable_lib
    from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

    hold_pool_threads()
    return portable_lib


def set_threads(threads: int) -> None:
    """Size the thread pool, before a program captures it.

    The pool counts the machine's cores and does not look at the process's CPU affinity: bound to one core it would
    run as many threads as the machine has, and they would take turns.
    """
    load_library()._unsafe_reset_threadpool(threads)
    torch.set_num_threads(threads)


class _Module:
    """A loaded `.pte` and its methods, by name; the first is the one that goes on with tokens."""

    def __init__(self, folder: Path, manifest: Manifest, version: str) -> None:
        portable_lib = load_library()
        self._version = version
        self.methods = {method.name: method for method in manifest.methods}
        self._called: set[str] = set()
        path = folder / manifest.methods[0].file
        try:
            with silenced(2):
                self._module = portable_lib._load_for_executorch(str(path))
            self._module.method_names()  # says whether it is a program at all
        except RuntimeError as error:
            raise ArtifactError(f"{path}: ExecuTorch {version} cannot load it: {one_line(error)}") from error
        for method in manifest.methods:
            check_program(self._module, path, method, manifest)

    def run(self, method: str, inputs: list[Tensor]) -> list[Tensor]:
        """What a method returns: views of the program's memory, valid until that method's next call."""
        return self._run(method, inputs) if method in self._called else self._first_run(method, inputs)

    def _first_run(self, method: str, inputs: list[Tensor]) -> list[Tensor]:
        """The one that probes the processor, aloud, and packs the weights into memory of the runtime's own."""
        pages = HugePages()
        with silenced(2):
            outputs = self._run(method, inputs)
        pages.adopt()
        self._called.add(method)
        return outputs

    def _run(self, method: str, inputs: list[Tensor]) -> list[Tensor]:
        try:
            with one_thread():
                return self._module.run_method(method, inputs, clone_outputs=False)
        except RuntimeError as error:
            raise ArtifactError(f"ExecuTorch {self._version} failed in {method}: {one_line(error)}") from error


class _Conversation(SeeingSession):
    """What both forms share: position, chunking, checks."""

    runtime = "executorch"

    def __init__(self, folder: Path, manifest: Manifest, version: str) -> None:
        self.version = version
        self.window = manifest.window
        self._module = _Module(folder, manifest, version)
        self._vocab = int(manifest.source.config["vocab_size"])
        self._method = manifest.methods[0]
        self._images: PteImages | None = (
            PteImages(folder, manifest, self._module.run) if manifest.takes_images else None
        )
        self.takes_images = self._images is not None
        self._probes: dict[str, np.ndarray] = {}
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def probes(self) -> dict[str, np.ndarray]:
        return self._probes

    def reset(self) -> None:
        self._position = 0

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        if pad_to is not None:
            raise UsageError("a .pte takes any number of tokens, and no padding")
        for start in range(0, len(tokens), self._method.max_tokens):
            chunk = tokens[start : start + self._method.max_tokens]
            logits, *shown = self._module.run(self._method.name, self._inputs(chunk))
            self._position += len(chunk)
        self._probes = {name.removeprefix(PROBE): _copy(x) for name, x in zip(self._method.probes, shown, strict=True)}
        return _copy(logits[0])

    def _inputs(self, chunk: Sequence[int]) -> list[Tensor]:
        """Of one call of at most `max_tokens` tokens at the current position."""
        first = torch.tensor([list(chunk)]) if self._images is None else self._images.embedded(chunk)
        return [first, torch.tensor([self._position])]


class ExplicitSession(_Conversation):
    """The caller's side of the in-place transport, batch 1 (see `Session`). T is dynamic: nothing is ever padded."""

    def __init__(self, folder: Path, manifest: Manifest, version: str) -> None:
        super().__init__(folder, manifest, version)
        self._state = InPlaceState(self._method)
        self.verifies = manifest.speculation
        self._verified = 0
        self._columns: list[Tensor] = []  # of the last `verify`, in the program's memory

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self._verified = 0
        return super().prefill(tokens, pad_to)

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        if not self.verifies:
            return super().verify(tokens)  # refuses
        check_draft(len(tokens), self.verifies)
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        logits, *self._columns = self._module.run(VERIFY, self._inputs(tokens))
        self._verified = len(tokens)
        return _copy(logits[0])

    def keep(self, count: int) -> None:
        """What was let go of lies in the caches behind the position, where no call looks."""
        check_kept(count, self._verified)
        if count:
            self._state.go_on(self._columns, count)
        self._position += count
        self._verified = 0

    def reset(self) -> None:
        super().reset()
        self._verified = 0
        self._state.forget()

    def state(self) -> Snapshot:
        return self._state.snapshot(self._position)

    def restore(self, snapshot: Snapshot) -> None:
        self._state.restore(snapshot)
        self._position = snapshot.position
        self._verified = 0

    def _inputs(self, chunk: Sequence[int]) -> list[Tensor]:
        return [*super()._inputs(chunk), *self._state.tensors.values()]


class ResidentSession(_Conversation):
    """State inside the program: no snapshot, and a `reset()` that only forgets the position."""

    has_state = False

    def state(self) -> Snapshot:
        raise UsageError("a resident form keeps its state to itself; export with --form explicit for snapshots")


def _copy(tensor: Tensor) -> np.ndarray:
    """A program's output in memory of its own."""
    return tensor.numpy().copy()
