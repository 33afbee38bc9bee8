"""Reading safetensors without trusting them: headers are checked against the config before a byte is mapped.

Tensors come memory-mapped, one at a time, in the dtype they are stored in, and are unmapped when the caller lets go of
them: no more of the weights is ever in memory than the caller keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lfm2_export.checkpoint.safetensors_file import WeightFile
from lfm2_export.checkpoint.shards import weight_files
from lfm2_export.errors import CheckpointError, one_line

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DECODER = "model.language_model."  # what begins the decoder's names within a vision-language model
Expected = Sequence[Mapping[str, tuple[int, ...]]]  # the shape of every tensor by name, in each way they may be held
_CHUNK = 1 << 20  # elements looked at in one go


def within_whole(name: str) -> str:
    """Return what a vision-language checkpoint calls a tensor of its decoder."""
    return name if name == HEAD else _DECODER + name.removeprefix("model.")


class Weights:
    """The tensors of a checkpoint folder, checked against those expected; nothing is read before they are asked for.

    The decoder's are known by the names that a decoder's own checkpoint gives them.
    """

    def __init__(self, folder: Path, expected: Expected, images: Expected = ()) -> None:
        """Check the headers against what is `expected` of the decoder and, of a vision-language model, of its `images`.

        Of several ways to hold the weights that one counts which is closest to what is there; each is in the order to
        read tensors in. Raises CheckpointError, one line that names file, tensor and expectation.
        """
        self._within = bool(images)
        self.files = weight_files(folder)
        self.home: dict[str, WeightFile] = {}
        for file in self.files:
            for name in file.shapes:
                if name in self.home:
                    raise CheckpointError(f"{file.path}: tensor {name!r:.120} is also in {self.home[name].path.name}")
                self.home[name] = file
        self._expected = min(expected, key=lambda way: len(set(map(self._stored, way)) - self.home.keys()))
        self._images = min(images, key=lambda way: len(way.keys() - self.home.keys()), default={})
        self._check_names(folder)

    @property
    def metadata(self) -> dict[str, str]:
        """Free-form strings of the headers, the first file's winning."""
        merged: dict[str, str] = {}
        for file in reversed(self.files):
            merged.update(file.metadata)
        return merged

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the decoder in the order expected, memory-mapped, in its stored dtype, to be read only.

        Raises CheckpointError for NaN or infinite values, naming file and tensor.
        """
        for name in self._expected:
            tensor = self._finite(self._stored(name))
            if name == EMBEDDING and HEAD not in self._expected and HEAD in self.home:
                self._check_tied(tensor)
            yield name, tensor

    def head(self) -> Tensor:
        """Return the matrix `[vocab, H]` that logits are made with, mapped: the embedding where they are tied."""
        name = HEAD if HEAD in self._expected else EMBEDDING
        stored = self._stored(name)
        return _read(self.home[stored].path, stored)

    def image_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of a vision-language model's image part, likewise."""
        for name in self._images:
            yield name, self._finite(name)

    def _stored(self, name: str) -> str:
        """The file's name of a decoder's tensor."""
        return within_whole(name) if self._within else name

    def _finite(self, stored: str) -> Tensor:
        path = self.home[stored].path
        tensor = _read(path, stored)
        if not _finite(tensor):
            raise CheckpointError(f"{path}: tensor {stored} holds NaN or infinite values")
        return tensor

    def _check_names(self, folder: Path) -> None:
        allowed = {self._stored(name): shape for name, shape in self._expected.items()} | dict(self._images)
        missing = [name for name in allowed if name not in self.home]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            where = self.files[0].path if len(self.files) == 1 else folder
            shape = list(allowed[missing[0]])
            raise CheckpointError(f"{where}: tensor {missing[0]} is missing{more}; config.json says {shape}")
        allowed.setdefault(HEAD, self._expected[EMBEDDING])  # some tied checkpoints store the head anyway
        for name, file in self.home.items():
            if name not in allowed:
                raise CheckpointError(f"{file.path}: tensor {name!r:.120} is not part of the model in config.json")
            if file.shapes[name] != allowed[name]:
                found, wanted = list(file.shapes[name]), list(allowed[name])
                raise CheckpointError(f"{file.path}: tensor {name} has shape {found}; config.json says {wanted}")

    def _check_tied(self, embedding: Tensor) -> None:
        path = self.home[HEAD].path
        head = _read(path, HEAD)
        if head.dtype != embedding.dtype or not torch.equal(head.view(torch.uint8), embedding.view(torch.uint8)):
            raise CheckpointError(
                f"{path}: {HEAD} differs from {self._stored(EMBEDDING)} although config.json ties them; set "
                f"tie_word_embeddings false"
            )


def _read(path: Path, name: str) -> Tensor:
    try:
        with path.open("rb"):  # whose error says why: safetensors calls every one a missing file
            pass
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError) as error:  # PyTorch, which maps the file, knows no other class
        raise CheckpointError(f"{path}: tensor {name}: {one_line(error)}") from error


def _finite(tensor: Tensor) -> bool:
    """Without a second copy, by the extremes: `aminmax` passes NaN on, and is ten times as fast as `isfinite`."""
    return all(bool(torch.isfinite(torch.stack(torch.aminmax(part))).all()) for part in tensor.view(-1).split(_CHUNK))
