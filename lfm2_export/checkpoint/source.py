"""Where a checkpoint comes from: the embedded nano, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.config import LFM2Config, read_config
from lfm2_export.checkpoint.weights import Weights, inside
from lfm2_export.errors import CheckpointError

RANDOM = "random-init"  # value of the safetensors metadata key "lfm2_export" in what `init` writes
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: config and headers are checked, no weight has been read."""

    name: str  # "nano", the folder's name, or the hub id
    revision: str | None  # hub commit
    folder: Path
    config: LFM2Config
    weights: Weights

    @property
    def random_weights(self) -> bool:
        """Whether `lfm2-export init` made it."""
        return self.weights.metadata.get("lfm2_export") == RANDOM

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every (name, tensor), memory-mapped, in its stored dtype; CheckpointError for NaN or infinity."""
        return self.weights.tensors()

    def digest(self) -> str:
        """Hex SHA-256 over every tensor's name, dtype, shape and bytes; the same however the files are split."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors():
            digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def companions(self) -> dict[str, Path]:
        """What an artifact carries along, by file name: configs, tokenizer, chat template, licence."""
        names = [name for name in _COMPANIONS if (self.folder / name).is_file()]
        names += sorted(path.name for path in self.folder.glob("LICENSE*") if path.is_file())
        return {name: inside(self.folder, name, self.folder.name) for name in names}


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open "nano", a folder in Hugging Face layout, or a hub id "owner/name" (cache and HF_HUB_OFFLINE honoured).

    Raises CheckpointError: no such place, or a config or header that is wrong.
    """
    if source == "nano":
        return _open(nano.PATH, "nano", None)
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source}: --revision is for hub ids, this is a local folder")
        return _open(folder, folder.resolve().name, None)
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
        raise CheckpointError(f"{source}: no such folder, and not a hub id of the form owner/name")
    snapshot = _download(source, revision)
    return _open(snapshot, source, snapshot.name)


def _open(folder: Path, name: str, revision: str | None) -> Checkpoint:
    config = read_config(inside(folder, "config.json", folder.name))
    return Checkpoint(name, revision, folder, config, Weights(folder, config))


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "LICENSE*"]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises from its own, requests' and the OS's families
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{source}: cannot be had from the hub: {reason[0]}") from error
