"""An explicit `.pte` of ours through the C++ runner, whose process holds the model and whose memory counts."""

from __future__ import annotations

from lfm2_export.artifact.folder import Artifact
from lfm2_export.bench.contenders import Memory
from lfm2_export.bench.contenders.artifact import ArtifactContender, opened
from lfm2_export.bench.spec import Spec
from lfm2_export.runtimes import native
from lfm2_export.runtimes._runner_session import RunnerSession


def prepare(spec: Spec, threads: int) -> None:
    """Check the artifact and that the runner is there; it is told its threads when it starts."""
    native.RUNTIME.version()
    opened(spec.path)


def load(spec: Spec, threads: int, room: int) -> NativeContender:
    """Start a runner on the artifact, whose checksum it compares itself; the window is its own, whatever `room` is."""
    artifact = opened(spec.path)
    session = native.RUNTIME.open_session(artifact.folder, artifact.manifest, threads)
    return NativeContender(artifact, session, threads)


class NativeContender(ArtifactContender):
    """Messages between two processes are part of every call: 256 KB of logits for a vocabulary of 65536."""

    def __init__(self, artifact: Artifact, session: RunnerSession, threads: int) -> None:
        super().__init__(artifact, session, threads)
        self._runner = session.runner

    def memory(self) -> Memory:
        """Return the memory of the runner's process, in bytes, once its weights are on huge pages."""
        now = self._runner.ask("memory")[0]
        return Memory(baseline=self._runner.hello["baseline_bytes"], peak=now["peak_bytes"])
