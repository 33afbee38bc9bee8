"""`--draft`: where the guesses come from, opened and held against the artifact that they are for."""

from __future__ import annotations

from pathlib import Path

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.chat.drafts import Lookup, SmallerModel, Source
from lfm2_export.errors import UsageError
from lfm2_export.runtimes.session import Session

LOOKUP = "lookup"
_TOKENIZER = "tokenizer.json"


def draft_source(given: str, session: Session, artifact: Artifact, threads: int | None = None) -> Source:
    """Return the source of drafts for a session: "lookup", or the artifact of a smaller model in that folder.

    UsageError where the session verifies no drafts, or the other model has another vocabulary or verifies none itself.
    """
    if not session.verifies:
        raise UsageError(
            f"--draft: {session.runtime} verifies no drafts of {artifact.folder}; it takes an explicit form exported "
            "with options.speculation, and executorch, native or onnxruntime as the runtime"
        )
    if given == LOOKUP:
        return Lookup()
    if not Path(given).is_dir():
        raise UsageError(f"--draft {given}: expected {LOOKUP}, or the folder of an artifact")
    other = open_artifact(Path(given))
    if _vocabulary(other.manifest) != _vocabulary(artifact.manifest):
        raise UsageError(f"--draft {given}: another vocabulary than {artifact.folder} has")
    runtime = runtimes.first(other.manifest)
    runtime.version()
    opened = runtime.open_session(other.folder, other.manifest, threads)
    if opened.verifies < 2:
        raise UsageError(f"--draft {given}: cannot take back what it guesses; export it with options.speculation")
    return SmallerModel(opened)


def _vocabulary(manifest: Manifest) -> tuple[object, object]:
    tokenizer = manifest.files.get(_TOKENIZER)
    return manifest.source.config.get("vocab_size"), tokenizer and tokenizer.sha256
