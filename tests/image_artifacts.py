"""A small vision-language model as an artifact, proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vision_checkpoints import save_vision

from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.pipeline import export
from lfm2_export.runtimes.session import Session

QUICK: dict[str, Any] = {"overrides": ["window=96"], "effort": "quick"}


class Made(NamedTuple):
    """A checkpoint, its artifact, and transformers' model."""

    checkpoint: Path
    folder: Path
    theirs: Any

    def session(self) -> Session:
        """A session of the artifact's own runtime."""
        artifact = open_artifact(self.folder)
        return runtimes.first(artifact.manifest).open_session(artifact.folder, artifact.manifest)


def made_with_images(place: Path, recipe: str) -> Made:
    """An LFM2-VL exported by a recipe, its quick proof passed."""
    theirs = save_vision(place / "vision", "lfm2_vl")
    export(str(place / "vision"), recipe, place / "out", **QUICK)
    return Made(place / "vision", place / "out", theirs)
