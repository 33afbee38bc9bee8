"""An ONNX artifact of ours over weights that were packed beforehand (`spec.through` sees to it)."""

from __future__ import annotations

from pathlib import Path

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bench.contenders.artifact import ArtifactContender
from lfm2_export.runtimes import onnxruntime_packed


def prepare(path: Path, threads: int) -> None:
    """Import the library; it is told its threads per session."""
    onnxruntime_packed.version()


def load(path: Path, threads: int, room: int) -> PackedContender:
    """Map the packed weights; the window is the artifact's own, whatever `room` is."""
    artifact = open_artifact(path)
    session = onnxruntime_packed.open_session(artifact.folder, artifact.manifest, threads)
    return PackedContender(artifact, session, threads)


class PackedContender(ArtifactContender):
    def stages(self, context: int, steps: int) -> dict[str, float] | None:
        """None: the kernels, and so the shares, are those of the artifact's own runtime."""
        return None
