"""The C++ runner of `runner/`, driving an explicit `.pte` in a process without Python or torch, as an app would."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError, UsageError
from lfm2_export.runtimes import _runner
from lfm2_export.runtimes._in_place_state import InPlaceState
from lfm2_export.runtimes.executorch import version as executorch_version
from lfm2_export.runtimes.session import Session, Snapshot, check_room


def version() -> str:
    """Of the executorch it is built on; MissingDependencyError if the runner is not built."""
    if platform.machine() != "x86_64":
        raise MissingDependencyError(f"lfm2_runner is built for x86-64 here, not for {platform.machine()}")
    _runner.program("x86_64")
    return executorch_version()


def runs(manifest: Manifest) -> bool:
    """Whether the artifact is a CPU `.pte` whose state is its caller's."""
    return manifest.target == "xnnpack" and manifest.form == "explicit"


def open_session(folder: Path, manifest: Manifest, threads: int | None = None) -> RunnerSession:
    """Start a runner for one conversation, on `threads` threads (None: as many as ExecuTorch thinks fit)."""
    return RunnerSession("native", version(), [_runner.program("x86_64")], folder, manifest, threads)


def weights_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: XNNPACK's int8 kernels round their inputs, whatever one asks."""
    return None


def reference_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: eager PyTorch computes what the file does."""
    return None


class RunnerSession:
    """One conversation in a runner's process, batch 1 (see `Session`). The state is copied here only when asked for."""

    pads = False
    has_state = True

    def __init__(
        self,
        runtime: str,
        version: str,
        command: Sequence[str | Path],
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
        emulated: bool = False,
    ) -> None:
        self.runtime = runtime
        self.version = version
        self.emulated = emulated
        self.window = manifest.window
        self.runner = _runner.Runner(command, folder, threads)
        self._vocab = int(manifest.source.config["vocab_size"])
        self._method = manifest.methods[0]
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        if pad_to is not None:
            raise UsageError("a .pte takes any number of tokens, and no padding")
        answer, data = self.runner.ask("feed", tokens=[int(token) for token in tokens])
        self._position = answer["position"]
        return _runner.logits(data)

    def decode(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def reset(self) -> None:
        self.runner.ask("reset")
        self._position = 0

    def state(self) -> Snapshot:
        answer, data = self.runner.ask("state")
        state, start = InPlaceState(self._method), 0
        for part in state.parts(answer["position"]):
            size = part.numel() * part.element_size()
            if size:  # before the first token a cache has no columns
                raw = torch.frombuffer(bytearray(data[start : start + size]), dtype=part.dtype)
                part.copy_(raw.view(part.shape))
            start += size
        return state.snapshot(answer["position"])

    def restore(self, snapshot: Snapshot) -> None:
        state = InPlaceState(self._method)
        state.restore(snapshot)
        parts = [part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in state.parts(snapshot.position)]
        self.runner.ask("restore", b"".join(parts), position=snapshot.position)
        self._position = snapshot.position
