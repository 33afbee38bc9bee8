"""ExecuTorch's in-process Python runtime, driving both forms of an `xnnpack` artifact.

The explicit form's window lives here and is written at the new slices' place after each call; the resident form keeps
it inside the loaded program, and `reset()` only goes back to position 0, exactly as the stock runners do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, MissingDependencyError, UsageError
from lfm2_export.model.state import is_cache
from lfm2_export.runtimes._native_log import silenced
from lfm2_export.runtimes.session import Session, Snapshot, check_room, check_snapshot


def version() -> str:
    """Of the installed executorch; MissingDependencyError if there is none."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("executorch")
    except PackageNotFoundError as error:
        raise MissingDependencyError("executorch is not installed; pip install executorch") from error


def runs(manifest: Manifest) -> bool:
    """Whether the artifact is a CPU `.pte`."""
    return manifest.target == "xnnpack"


def open_session(folder: Path, manifest: Manifest) -> Session:
    """Load an artifact for one conversation. ArtifactError when ExecuTorch refuses the file."""
    return ExplicitSession(folder, manifest) if manifest.form == "explicit" else ResidentSession(folder, manifest)


def weights_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: XNNPACK's int8 kernels round their inputs, whatever one asks."""
    return None


class _Module:
    """A loaded `.pte` and its one method."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

        self.method = manifest.methods[0]
        self._log: tuple[int, ...] = (2,)  # the first call probes the processor aloud
        path = folder / self.method.file
        try:
            with silenced(2):
                self._module = portable_lib._load_for_executorch(str(path))
            found = self._module.method_names()
        except RuntimeError as error:
            raise ArtifactError(f"{path}: ExecuTorch {version()} cannot load it: {_one_line(error)}") from error
        if self.method.name not in found:
            raise ArtifactError(f"{path}: no method {self.method.name!r}, only {', '.join(found)}")

    def __call__(self, inputs: list[Tensor]) -> list[Any]:
        try:
            # contiguous: the runtime aborts the process on a strided input
            with silenced(*self._log):
                outputs = self._module.run_method(self.method.name, [tensor.contiguous() for tensor in inputs])
        except RuntimeError as error:
            raise ArtifactError(f"ExecuTorch {version()} failed in {self.method.name}: {_one_line(error)}") from error
        self._log = ()
        return list(outputs)


class _Conversation(ABC):
    """What both forms share: position, chunking, checks."""

    runtime = "executorch"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.version = version()
        self.window = manifest.window
        self._module = _Module(folder, manifest)
        self._vocab = int(manifest.source.config["vocab_size"])
        self._limit = manifest.methods[0].max_tokens
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._position = 0

    def decode(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        for start in range(0, len(tokens), self._limit):
            chunk = list(tokens[start : start + self._limit])
            logits = self._call(chunk, pad_to)
            self._position += len(chunk)
        return logits

    @abstractmethod
    def _call(self, chunk: list[int], pad_to: int | None) -> np.ndarray:
        """One call of at most `max_tokens` tokens at the current position; logits `[vocab]`."""


class ExplicitSession(_Conversation):
    """The caller's side of the `slice` transport, batch 1 (see `Session`)."""

    pads = True
    has_state = True

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest)
        shapes = [(spec.name, spec.shape) for spec in manifest.methods[0].inputs[3:]]
        self._state = {name: torch.zeros([int(size) for size in shape]) for name, shape in shapes}

    def reset(self) -> None:
        super().reset()
        for tensor in self._state.values():
            tensor.zero_()

    def state(self) -> Snapshot:
        cut = {name: t[:, :, : self._position] if is_cache(name) else t for name, t in self._state.items()}
        return Snapshot(self._position, {name: tensor.numpy().copy() for name, tensor in cut.items()})

    def restore(self, snapshot: Snapshot) -> None:
        check_snapshot(snapshot, {name: tuple(tensor.shape) for name, tensor in self._state.items()})
        self.reset()
        self._position = snapshot.position
        for name, values in snapshot.tensors.items():
            target = self._state[name][:, :, : self._position] if is_cache(name) else self._state[name]
            target.copy_(torch.from_numpy(values))

    def _call(self, chunk: list[int], pad_to: int | None) -> np.ndarray:
        rows = chunk + [0] * (min(pad_to or 0, self._limit) - len(chunk))
        scalars = [torch.tensor([rows]), torch.tensor([self._position]), torch.tensor([len(chunk)])]
        logits, *new = self._module(scalars + list(self._state.values()))
        end = self._position + len(chunk)
        for (name, tensor), update in zip(self._state.items(), new, strict=True):
            if is_cache(name):
                tensor[:, :, self._position : end] = update[:, :, : len(chunk)]
            else:
                tensor.copy_(update)
        return logits[0].numpy()


class ResidentSession(_Conversation):
    """State inside the program: no padding, no snapshot, and a `reset()` that only forgets the position."""

    pads = False
    has_state = False

    def state(self) -> Snapshot:
        raise UsageError("a resident form keeps its state to itself; export with --form explicit for snapshots")

    def restore(self, snapshot: Snapshot) -> None:
        self.state()

    def _call(self, chunk: list[int], pad_to: int | None) -> np.ndarray:
        if pad_to is not None:
            raise UsageError("a resident form takes no padding")
        return self._module([torch.tensor([chunk]), torch.tensor([self._position])])[0][0].numpy()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
