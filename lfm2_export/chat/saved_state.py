"""A conversation's state as one file, for another process to go on from: a prefix cache, a chat put aside.

The file is a safetensors file: the snapshot's tensors, the embeddings of a chat's pictures as `picture.0` and so on,
and under one metadata key a SHA-256 over all the rest, a space, and a JSON document (`_Header`) with the tokens behind
the state and the artifact it belongs to. One key, because the
format leaves the order of several open and the same state must give the same bytes. Whoever reads such a file trusts
none of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.safetensors_file import read_header
from lfm2_export.errors import CheckpointError, StateFileError, UsageError, field_error, one_line
from lfm2_export.files import FileKind, check_free_file, write_bytes
from lfm2_export.model.state import state_shapes
from lfm2_export.runtimes.session import Snapshot, check_snapshot

FORMAT_VERSION = 1
_KEY = "lfm2_export_state"
_HEADER_BYTES = 1 << 20  # for tensor names, tools and a system prompt …
_PICTURE = "picture."
_HEADER_BYTES_PER_TOKEN = 256  # … and for each token of the window: its id, and its text as JSON


def _with_role(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise ValueError("a message has no role")
    return message


class _Header(BaseModel):
    """Everything but the tensors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int
    artifact: str  # `artifact_digest`
    window: int
    position: int = Field(ge=0)
    tokens: list[int]  # as many as `position`
    messages: list[Annotated[dict[str, Any], AfterValidator(_with_role)]]  # of a chat; empty when only tokens are known
    tools: list[Any] | None


@dataclass(frozen=True)
class SavedState:
    """The contents of a state file: the snapshot, the tokens that led to it, and a chat's messages and tools.

    In a message an image's part holds the `text` that stands for it in the prompt; `pictures` are the embeddings of all
    images, `[places, H] float32` each.
    """

    snapshot: Snapshot
    tokens: tuple[int, ...]
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[Any, ...] | None = None
    pictures: tuple[np.ndarray, ...] = ()


def save_state(
    path: Path,
    snapshot: Snapshot,
    artifact: Artifact,
    tokens: Sequence[int],
    force: bool = False,
    *,
    messages: Iterable[dict[str, Any]] = (),
    tools: Iterable[Any] | None = None,
    pictures: Sequence[np.ndarray] = (),
) -> None:
    """Write a snapshot of a session of `artifact`, and the `tokens` that it has seen, as one file.

    `messages` and `tools`, plain JSON values, let a chat go on, and the `pictures` of its messages (see `SavedState`)
    let it begin anew. The same state gives the same bytes; the file appears
    whole or not at all. UsageError when it exists and `force` is not set, when the tokens are not as many as the
    position, when the snapshot does not fit the artifact, or when the system refuses.
    """
    from safetensors.numpy import save

    check_free_file(path, force, KIND)
    if len(tokens) != snapshot.position:
        raise UsageError(f"{len(tokens)} tokens cannot have led to position {snapshot.position}")
    shapes = _shapes(artifact.manifest)
    check_snapshot(snapshot, shapes)
    if wrong := _wrong_dtype(snapshot.tensors, artifact.manifest):
        raise UsageError(f"the snapshot does not fit: {wrong}")
    shown = {f"{_PICTURE}{number}": rows.astype(np.float32) for number, rows in enumerate(pictures)}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in (snapshot.tensors | shown).items()}
    header = _Header(
        version=FORMAT_VERSION,
        artifact=artifact_digest(artifact.manifest),
        window=artifact.manifest.window,
        position=snapshot.position,
        tokens=[int(token) for token in tokens],
        messages=list(messages),
        tools=None if tools is None else list(tools),
    )
    text = json.dumps(header.model_dump(), separators=(",", ":"))  # not sorted: a template writes a tool as it is
    data = save(tensors, {_KEY: f"{_checksum(text, tensors)} {text}"})
    if len(data) > (most := _most_bytes(shapes, artifact.manifest)):
        raise UsageError(f"cannot write {path}: {len(data)} bytes, at most {most} are read back; shorten the messages")
    write_bytes(path, data, force, KIND)


def _check_ours(path: Path) -> None:
    if _KEY not in read_header(path).metadata:
        raise StateFileError(f"no {_KEY} in its metadata")


KIND = FileKind("chat", _check_ours)


def load_state(path: Path, artifact: Artifact) -> SavedState:
    """Read what `save_state` wrote, for a session of the same artifact.

    Raises StateFileError, one line that names the file: missing, too large, damaged, forged, of a later format, of
    another artifact or window, or with tokens that the model does not have.
    """
    shapes = _shapes(artifact.manifest)
    data, metadata = _read(path, _most_bytes(shapes, artifact.manifest))
    if _KEY not in metadata:
        raise StateFileError(f"{path}: not a saved state: no {_KEY} in its metadata")
    checksum, _, text = metadata[_KEY].partition(" ")
    header = _parsed(path, text)
    tensors = _tensors(path, data, artifact.manifest)
    if _checksum(text, tensors) != checksum:
        raise StateFileError(f"{path}: its checksum does not match; the file was altered or damaged")
    _check_belongs(path, header, artifact.manifest)
    pictures = _pictures(path, header, tensors, artifact.manifest)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PICTURE)}
    snapshot = Snapshot(header.position, state)
    try:
        check_snapshot(snapshot, shapes)
    except UsageError as error:
        raise StateFileError(f"{path}: {error}") from error
    tools = None if header.tools is None else tuple(header.tools)
    return SavedState(snapshot, tuple(header.tokens), tuple(header.messages), tools, pictures)


def artifact_digest(manifest: Manifest) -> str:
    """SHA-256 over the files that decide the numbers: each method's, and weights beside it (`model.onnx_data`).

    Where the folder lies, its tokenizer and its proof do not change it.
    """
    stems = {PurePosixPath(method.file).stem for method in manifest.methods}
    entries = [(name, e.sha256) for name, e in sorted(manifest.files.items()) if PurePosixPath(name).stem in stems]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _read(path: Path, most: int) -> tuple[bytes, dict[str, str]]:
    """The whole file and its metadata, once its size and its structure are plausible."""
    try:
        if not path.is_file():
            raise StateFileError(f"{path}: no such file; `/save` in a chat or `--save-state` writes one")
        if (size := path.stat().st_size) > most:
            raise StateFileError(f"{path}: {size} bytes; a state of this artifact has at most {most}")
        metadata = read_header(path).metadata
        return path.read_bytes(), metadata
    except CheckpointError as error:
        raise StateFileError(str(error)) from error
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read: {error.strerror}") from error


def _parsed(path: Path, text: str) -> _Header:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFileError(f"{path}: {_KEY} is not valid JSON") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise StateFileError(
            f"{path}: format version {version!r:.40}, this lfm2-export reads {FORMAT_VERSION}; use the one that made it"
        )
    try:
        return _Header.model_validate(document)
    except ValidationError as error:
        raise StateFileError(f"{path}: {field_error(error)}") from error


def _tensors(path: Path, data: bytes, manifest: Manifest) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except Exception as error:  # the library's errors have no common base
        raise StateFileError(f"{path}: not a safetensors file: {one_line(error)}") from error
    if wrong := _wrong_dtype(tensors, manifest):
        raise StateFileError(f"{path}: {wrong}")
    return tensors


def _wrong_dtype(tensors: Mapping[str, np.ndarray], manifest: Manifest) -> str | None:
    """The first tensor that is neither fp32 nor of a float type among the artifact's inputs."""
    allowed = {spec.dtype for spec in manifest.methods[0].inputs if spec.dtype.startswith("float")} | {"float32"}
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in allowed:
            return f"{name:.80} is {tensor.dtype}; this artifact's state is {', '.join(sorted(allowed))}"
    return None


def _check_belongs(path: Path, header: _Header, manifest: Manifest) -> None:
    """Whether the header is about this artifact and can be true of it."""
    if header.artifact != artifact_digest(manifest):
        raise StateFileError(f"{path}: saved from another artifact; a state fits only the one it came from")
    if header.window != manifest.window:
        raise StateFileError(f"{path}: saved at window {header.window}, this artifact's is {manifest.window}")
    if header.position > header.window or header.position != len(header.tokens):
        raise StateFileError(
            f"{path}: position {header.position} with {len(header.tokens)} tokens in a window of {header.window}"
        )
    vocab = int(manifest.source.config["vocab_size"])
    if any(not 0 <= token < vocab for token in header.tokens):
        raise StateFileError(f"{path}: token ids outside the vocabulary of {vocab}")


def _pictures(
    path: Path, header: _Header, tensors: Mapping[str, np.ndarray], manifest: Manifest
) -> tuple[np.ndarray, ...]:
    """The embeddings of the messages' pictures: one tensor for each, as wide as the model, within the tokens."""
    parts = [part for message in header.messages for part in _images_in(message)]
    if any(not isinstance(part.get("text"), str) for part in parts):
        raise StateFileError(f"{path}: a picture in its messages has no text")
    count, width = len(parts), int(manifest.source.config["hidden_size"])
    names = [f"{_PICTURE}{number}" for number in range(count)]
    if {name for name in tensors if name.startswith(_PICTURE)} != set(names):
        raise StateFileError(f"{path}: its messages hold {count} pictures, and its tensors are of others")
    found = tuple(tensors[name] for name in names)
    if any(rows.ndim != 2 or rows.shape[1] != width or rows.dtype != np.float32 for rows in found):
        raise StateFileError(f"{path}: a picture is not float32 of the model's width of {width}")
    if sum(map(len, found)) > header.position:
        raise StateFileError(f"{path}: its pictures have more places than the conversation has tokens")
    return found


def _images_in(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "image"]


def _checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the header as it is spelled and every tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256(json.dumps(text).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    return state_shapes(from_dict(manifest.source.config, "manifest.json"), manifest.window)


def _most_bytes(shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> int:
    """Of any state file of this artifact: the full window in fp32, and a header with room for the conversation."""
    elements = sum(math.prod(shape) for shape in shapes.values())
    if manifest.takes_images:
        elements += manifest.window * int(manifest.source.config["hidden_size"])
    return 4 * elements + _HEADER_BYTES + _HEADER_BYTES_PER_TOKEN * manifest.window
