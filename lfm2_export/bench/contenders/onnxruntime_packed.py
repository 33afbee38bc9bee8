"""An ONNX artifact of ours over weights that were packed beforehand (`spec.through` sees to it)."""

from __future__ import annotations

from pathlib import Path

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bench.contenders.artifact import ArtifactContender
from lfm2_export.runtimes import onnxruntime_packed


def prepare(path: Path, threads: int) -> None:
    """Import the library; it is told its threads per session."""
    onnxruntime_packed.RUNTIME.version()


def load(path: Path, threads: int, room: int) -> ArtifactContender:
    """Map the packed weights; the window is the artifact's own, whatever `room` is."""
    artifact = open_artifact(path)
    session = onnxruntime_packed.RUNTIME.open_session(artifact.folder, artifact.manifest, threads)
    return ArtifactContender(artifact, session, threads)
