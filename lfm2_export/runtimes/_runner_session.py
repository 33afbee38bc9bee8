"""A conversation with the C++ runner of `runner/`, which holds model and state in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import UsageError
from lfm2_export.runtimes import _runner
from lfm2_export.runtimes.session import Session, Snapshot, check_draft, check_room


class RunnerSession(Session):
    """One conversation in a runner's process, batch 1 (see `Session`). The state is copied here only when asked for."""

    def __init__(
        self,
        runtime: str,
        version: str,
        command: Sequence[str | Path],
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
    ) -> None:
        self.runtime = runtime
        self.version = version
        self.window = manifest.window
        self.runner = _runner.Runner(command, folder, threads)
        self._vocab = int(manifest.source.config["vocab_size"])
        self._method = manifest.methods[0]
        self.verifies = manifest.speculation
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

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        if not self.verifies:
            return super().verify(tokens)  # refuses
        check_draft(len(tokens), self.verifies)
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        _, data = self.runner.ask("verify", tokens=[int(token) for token in tokens])
        return _runner.logits(data).reshape(len(tokens), self._vocab)

    def keep(self, count: int) -> None:
        answer, _ = self.runner.ask("keep", count=count)
        self._position = answer["position"]

    def reset(self) -> None:
        self.runner.ask("reset")
        self._position = 0

    def state(self) -> Snapshot:
        import torch  # the runner needs none: only this copy does

        from lfm2_export.runtimes._in_place_state import InPlaceState

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
        import torch

        from lfm2_export.runtimes._in_place_state import InPlaceState

        state = InPlaceState(self._method)
        state.restore(snapshot)
        parts = [part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in state.parts(snapshot.position)]
        self.runner.ask("restore", b"".join(parts), position=snapshot.position)
        self._position = snapshot.position
