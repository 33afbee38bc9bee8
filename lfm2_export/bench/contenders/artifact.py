"""An artifact of ours, through a runtime's Session: its own, or the one that the spec names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.bench.bytes_read import cache_bytes, weight_bytes
from lfm2_export.bench.drafted import Drafted
from lfm2_export.bench.drafting import drafted
from lfm2_export.bench.spec import Spec
from lfm2_export.bench.stages import decode_stages
from lfm2_export.model.state import is_cache
from lfm2_export.runtimes import onnxruntime
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session, Snapshot

_FILLER = 1  # any token will do


opened = cache(open_artifact)  # checked once, before the clock runs: no other contender compares checksums


def prepare(spec: Spec, threads: int) -> None:
    """Check the artifact and import its runtime's library, which is told the number of threads when it loads."""
    _runtime(spec).load_library()


def load(spec: Spec, threads: int, room: int) -> ArtifactContender:
    """Open the artifact; its window is its own, whatever `room` is."""
    artifact, runtime = opened(spec.path), _runtime(spec)
    session = runtime.open_session(artifact.folder, artifact.manifest, threads)
    return ArtifactContender(artifact, session, threads, counted=runtime.computes_on == "CPU")


def _runtime(spec: Spec) -> Runtime:
    return runtimes.find(spec.runtime) if spec.runtime else runtimes.first(opened(spec.path).manifest)


class ArtifactContender:
    """Stands at a position by restoring a made-up snapshot, or, where the state is hidden, by talking that long.

    Bytes read are `counted` unless the model lies in a memory whose bandwidth nobody measured.
    """

    def __init__(self, artifact: Artifact, session: Session, threads: int, counted: bool = True) -> None:
        manifest = artifact.manifest
        self._artifact, self._session, self._threads = artifact, session, threads
        self.runtime = f"{self._session.runtime} {self._session.version}"
        self.window = self._session.window
        self.vocab = int(manifest.source.config["vocab_size"])
        self.size = sum(entry.size for name, entry in manifest.files.items() if _is_model(name, artifact))
        self._counted = counted
        self._one_token: Snapshot | None = None

    # counted only when asked: that traces the model, which takes longer than a load
    @cached_property
    def weight_bytes(self) -> int | None:
        return weight_bytes(self._artifact.manifest) if self._counted else None

    @cached_property
    def cache_bytes(self) -> int | None:
        return cache_bytes(self._artifact.manifest) if self._counted else None

    def stand(self, position: int) -> None:
        if position == 0:
            self._session.reset()
        elif self._session.has_state:
            self._session.restore(self._snapshot(position))
        else:
            if self._session.position > position:
                self._session.reset()
            if position > self._session.position:
                self._session.prefill([_FILLER] * (position - self._session.position))

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        return self._session.prefill(tokens)

    def drafted(self, draft: str) -> Drafted:
        """Measure a reply with drafts from there. UsageError where there can be none."""
        return drafted(draft, self._session, self._artifact, self._threads)

    def stages(self, context: int, steps: int) -> dict[str, float] | None:
        """Share of a decode step that each kind of operator takes; None where the runtime has no profiler."""
        artifact = self._artifact
        if self._session.runtime != onnxruntime.RUNTIME.name or context > self.window:
            return None
        snapshot = self._snapshot(max(1, context - steps))
        return decode_stages(artifact.folder, artifact.manifest, self._threads, snapshot, _FILLER, steps)

    def _snapshot(self, position: int) -> Snapshot:
        """The state after one real token, its keys and values repeated: ordinary numbers, no zeros or denormals."""
        if self._one_token is None:
            self._session.reset()
            self._session.prefill([_FILLER])
            self._one_token = self._session.state()
        tensors = {
            name: np.repeat(values, position, axis=2) if is_cache(name) else values
            for name, values in self._one_token.tensors.items()
        }
        return Snapshot(position, tensors)


def _is_model(name: str, artifact: Artifact) -> bool:
    """Whether a file is a method's, or its external data (named after it)."""
    return any(name.startswith(method.file) for method in artifact.manifest.methods)
