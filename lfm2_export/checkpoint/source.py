"""Where a checkpoint comes from: the embedded nano, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lfm2_export.checkpoint.adapter import WEIGHTS, Adapter, base_of, is_adapter, merge
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.foreign import with_transformers
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.checkpoint.shards import inside
from lfm2_export.checkpoint.vision_config import VisionConfig, decoder_document, read_model_config
from lfm2_export.checkpoint.weights import Expected, Weights
from lfm2_export.errors import CheckpointError, UsageError, one_line
from lfm2_export.files import cache_root, hidden, sha256

RANDOM = "random-init"  # value of the safetensors metadata key "lfm2_export" in what `init` writes
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # what becomes of images before the model
_WANTED = ["*.json", "*.safetensors", "*.jinja", "LICENSE*"]
Expecting = Callable[[LFM2Config | VisionConfig], Expected]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: config and headers are checked, no weight has been read."""

    name: str  # an embedded one's, the folder's, or the hub id
    revision: str | None  # hub commit
    folder: Path
    config: LFM2Config  # of the decoder
    weights: Weights
    vision: VisionConfig | None = None  # the image part of a vision-language model
    adapter: Adapter | None = None  # merged onto its base: `folder` is then ours, and gone with this object

    @property
    def random_weights(self) -> bool:
        """Tell whether `lfm2-export init` made it, or what is under its adapter."""
        made = self.weights.metadata.get("lfm2_export") == RANDOM
        return made or (self.adapter is not None and self.adapter.random_base)

    @property
    def place(self) -> Path:
        """The folder that the user, or the hub's cache, has: the adapter's where one was merged."""
        return self.folder if self.adapter is None else self.adapter.folder

    @property
    def is_local(self) -> bool:
        """Tell whether it is a folder of the user's, neither embedded nor a snapshot of the hub's."""
        return self.revision is None and self.name not in EMBEDDED

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every (name, tensor) of the decoder, memory-mapped, in its stored dtype.

        Raise CheckpointError for NaN or infinity.
        """
        return self.weights.tensors()

    def head(self) -> Tensor:
        """Return the matrix `[vocab, H]` that logits are made with, memory-mapped, in its stored dtype."""
        return self.weights.head()

    def digest(self) -> str:
        """Hex SHA-256 over every tensor's name, dtype, shape and bytes; the same however the files are split.

        Of a vision-language model that of its decoder, as if it were saved alone.
        """
        return _digest(self.tensors())

    def images_digest(self) -> str:
        """The same of the image part's tensors."""
        return _digest(self.weights.image_tensors())

    def companions(self) -> dict[str, Path]:
        """Return the files that an artifact carries along, by name: configs, tokenizer, chat template, licence."""
        return _companions(self.folder)

    def copy_companions(self, folder: Path, images: bool = False) -> None:
        """Copy them into `folder`, and with `images` what the processor reads.

        Without, a vision-language model's decoder gets the `config.json` of a decoder.
        """
        for name, path in self.companions().items():
            shutil.copyfile(path, folder / name)
        for name in _PROCESSOR if images else ():
            if (self.folder / name).is_file():
                shutil.copyfile(inside(self.folder, name), folder / name)
        if self.vision is not None and not images:
            config = folder / "config.json"
            document = decoder_document(json.loads(config.read_bytes()), str(config))
            config.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")


def open_checkpoint(source: str, revision: str | None, expected: Expecting, base: str | None = None) -> Checkpoint:
    """Open an embedded one, a folder in Hugging Face layout, or a hub id "owner/name".

    A hub's files come from its cache where they are there; HF_HUB_OFFLINE is honoured. A LoRA adapter is merged onto
    `base`, or the one it names. `expected` says which tensors a checkpoint of a config holds, in each way it may hold
    them (`model/load.py` knows).

    Raises UsageError for a place that does not exist, CheckpointError for a config or header that is wrong.
    """
    folder = EMBEDDED.get(source) or Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"{source}: a revision is for hub ids; this is a folder on this machine")
        return _open(folder, source if source in EMBEDDED else folder.resolve().name, None, expected, base)
    if folder.exists():
        raise UsageError(f"{source} is a file; pass the folder that holds config.json and the weights{_gguf(folder)}")
    if not _HUB_ID.fullmatch(source):
        raise UsageError(f"{source}: no such folder, and not a hub id of the form owner/name")
    snapshot = _download(source, revision)
    return _open(snapshot, source, snapshot.name, expected, base)


def _open(folder: Path, name: str, revision: str | None, expected: Expecting, base: str | None) -> Checkpoint:
    if is_adapter(folder):
        return _open_adapter(folder, name, revision, expected, base_of(folder, base))
    if base is not None:
        raise UsageError(f"{name} is a whole checkpoint; --base is for a LoRA adapter")
    config, vision = read_model_config(inside(folder, "config.json"))
    weights = Weights(folder, expected(config), expected(vision) if vision is not None else ())
    return Checkpoint(name, revision, folder, config, weights, vision)


def _open_adapter(folder: Path, name: str, revision: str | None, expected: Expecting, base: str) -> Checkpoint:
    """The merged model, in a hidden folder of the cache, which goes with the checkpoint or with the process."""
    if is_adapter(Path(base)):
        raise CheckpointError(f"{folder}: its base {base} is an adapter itself; merge that one first")
    under = open_checkpoint(base, None, expected)
    if under.vision is not None:
        raise CheckpointError(
            f"{folder}: its base {base} is a vision-language model; merge them with PEFT, then export the result"
        )
    places = cache_root() / "merged"
    places.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        merged = stack.enter_context(hidden.hidden_folder(places, folder.resolve().name)) / hidden.NEW
        merged.mkdir()
        merge(folder, under.folder, under.weights.files, under.companions() | _companions(folder), merged)
        digest = sha256(folder / WEIGHTS)
        adapter = Adapter(folder, digest, under.name, under.revision, under.digest(), under.random_weights)
        opened = replace(_open(merged, name, revision, expected, None), adapter=adapter)
        weakref.finalize(opened, stack.pop_all().close)
    return opened


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _gguf(file: Path) -> str:
    if file.suffix != ".gguf":
        return ""
    command = with_transformers(str(file.parent), str(file.with_suffix("")), f', gguf_file="{file.name}"')
    return f", from before it was made a GGUF; where only that is left, rounded as it is: {command}"


def _companions(folder: Path) -> dict[str, Path]:
    names = [name for name in _COMPANIONS if (folder / name).is_file()]
    names += sorted(path.name for path in folder.glob("LICENSE*") if path.is_file())
    return {name: inside(folder, name) for name in names}


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        # a pattern's * crosses folders, and some repositories keep other formats' weights in theirs
        return Path(snapshot_download(source, revision=revision, allow_patterns=_WANTED, ignore_patterns="*/*"))
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{source}: the hub has no revision {revision!r:.80} of it") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{source}: gated; accept its terms on the hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{source}: no such folder, and the hub has no such model (or it is private)") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{source}: no such folder, not in the hub cache, and the hub is out of reach") from error
    except Exception as error:  # the hub client raises from its own, its HTTP library's and the OS's families
        raise CheckpointError(f"{source}: cannot be had from the hub: {one_line(error)}") from error
