"""The checkpoint that an artifact was made from, which is what it is judged against."""

from __future__ import annotations

from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.last_seen import remembered
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import ArtifactError, UsageError
from lfm2_export.model.load import open_checkpoint


def checkpoint_of(artifact: Artifact, given: str | None = None, base: str | None = None) -> Checkpoint:
    """Return the checkpoint an artifact was made from: `given`, embedded, a hub id, or where it was last seen.

    `base` is for a LoRA adapter, where it is not the one it names. Raises UsageError when it is a local folder that was
    neither given nor seen on this machine, ArtifactError when the weights differ.
    """
    source = artifact.manifest.source
    if given is None and source.name not in EMBEDDED and "/" not in source.name:
        if (seen := remembered(source.weights_sha256)) is None:
            raise UsageError(
                f"{artifact.folder} was made from the local folder {source.name!r}; pass --checkpoint FOLDER"
            )
        given, base = str(seen.folder), base or seen.base
    checkpoint = open_checkpoint(given or source.name, None if given else source.revision, base)
    images = checkpoint.images_digest() if source.images_sha256 is not None else None
    if (checkpoint.digest(), images) != (source.weights_sha256, source.images_sha256):
        raise ArtifactError(
            f"{checkpoint.folder}: not the weights that {artifact.folder} was made from (digest differs)"
        )
    return checkpoint
