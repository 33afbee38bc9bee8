"""An artifact in name only, run by the eager model: enough to test what is built on top of a session, quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import tiny_config

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import FileEntry, Manifest, MethodSpec, Source, TensorSpec
from lfm2_export.chat.saved_state import save_state
from lfm2_export.checkpoint.config import LFM2Config, to_dict
from lfm2_export.model.decoder import Decoder
from lfm2_export.runtimes.eager import EagerSession

TOKENS = [5, 9, 2, 700, 31]
MESSAGES = [{"role": "system", "content": "Répondez."}, {"role": "user", "content": "hi 👋"}]


def artifact_of(config: LFM2Config, window: int = 32, sha256: str = "a" * 64, **changes: Any) -> Artifact:
    """A manifest of the explicit form; its files exist nowhere."""
    state = TensorSpec(name="conv_state.0", dtype="float32", shape=[1, 1, 1])
    values: dict[str, Any] = {
        "files": {"model.pte": FileEntry(size=1, sha256=sha256), "tokenizer.json": FileEntry(size=1, sha256="b" * 64)},
        "source": Source(name="tiny", weights_sha256="0" * 64, config=to_dict(config)),
        "recipe": {},
        "target": "xnnpack",
        "form": "explicit",
        "transport": "inplace",
        "cache_layout": "heads-time",
        "window": window,
        "chat": True,
        "methods": [MethodSpec(name="forward", file="model.pte", inputs=[state], outputs=[], max_tokens=window)],
        "quantization": {},
        "versions": {},
        "runtime_requirement": "",
    }
    return Artifact(Path("nowhere"), Manifest(**(values | changes)))


def tiny_session(window: int = 32, seed: int = 0, config: LFM2Config | None = None) -> EagerSession:
    """Random weights, the same for the same seed."""
    torch.manual_seed(seed)
    decoder = Decoder(config or tiny_config()).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return EagerSession(decoder, window)


def good_state(artifact: Artifact, folder: Path) -> Path:
    """A state file of a `tiny_session` after TOKENS, which MESSAGES are said to have become."""
    session = tiny_session()
    session.prefill(TOKENS)
    save_state(folder / "good.state", session.state(), artifact, TOKENS, messages=MESSAGES)
    return folder / "good.state"
