"""The Core ML model that a `.pte` carries, made the same for the same checkpoint.

Both methods are functions of one ML program, whose weights lie once in the file. ExecuTorch and coremltools name the
model and its parts at random; here the names follow from the content. (The model's name is not for show: on a phone it
is the key of the cache that holds the compiled model, so another model must have another.)
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coremltools import proto
from executorch.backends.apple.coreml import executorchcoreml
from executorch.exir._serialize._named_data_store import NamedDataStore

from lfm2_export.errors import LoweringError
from lfm2_export.files import scratch_folder

_REFERENCE = b"CMJR"  # what a method has in the model's place: this, then JSON that names it
_PACKAGE = "model.mlpackage"


def settle(methods: Sequence[Any]) -> NamedDataStore:
    """Rename the one model that these lowered methods share, after its content; return the store that holds it.

    Raises LoweringError where they are not methods of one model.
    """
    references = [_reference(method.processed_bytes) for method in methods]
    stored = methods[0].named_data_store_output
    if len({reference["key"] for reference in references}) != 1 or stored is None or len(stored.buffers) != 1:
        raise LoweringError("Core ML's methods do not share one model")
    name, data = _settled(stored.buffers[0])
    store = NamedDataStore()
    store.add_named_data(f"coreml_{name}", data)
    for method, reference in zip(methods, references, strict=True):
        reference["key"] = f"coreml_{name}"
        method._processed_bytes = _REFERENCE + json.dumps(reference).encode()
    return store


def _reference(data: bytes) -> dict[str, Any]:
    if not data.startswith(_REFERENCE):
        raise LoweringError("Core ML's methods do not share one model")
    reference: dict[str, Any] = json.loads(data.removeprefix(_REFERENCE))
    return reference


def _settled(data: bytes) -> tuple[str, bytes]:
    """The model's name and its files, which say nothing that its content does not."""
    with scratch_folder() as scratch:
        if not executorchcoreml.unflatten_directory_contents(data, str(scratch)):
            raise LoweringError("ExecuTorch cannot read the Core ML model that it has just written")
        metadata = next(scratch.rglob("metadata.json"))
        _settle_package(metadata.parent / _PACKAGE)
        digest = hashlib.sha256()
        for path in sorted(path for path in metadata.parent.rglob("*") if path.is_file() and path != metadata):
            digest.update(path.relative_to(metadata.parent).as_posix().encode() + b"\0" + path.read_bytes())
        name = f"executorch_{uuid.uuid5(uuid.NAMESPACE_URL, digest.hexdigest())}"
        described = json.loads(metadata.read_bytes()) | {"identifier": name}
        metadata.write_text(json.dumps(described))
        flat = executorchcoreml.flatten_directory_contents(str(metadata.parent))
        if not flat:
            raise LoweringError("ExecuTorch cannot pack the Core ML model")
        return name, flat


def _settle_package(package: Path) -> None:
    manifest = package / "Manifest.json"
    listed = json.loads(manifest.read_bytes())
    entries = listed["itemInfoEntries"]
    renamed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for old, entry in entries.items()}
    listed["itemInfoEntries"] = {renamed[old]: entries[old] for old in sorted(entries, key=renamed.__getitem__)}
    listed["rootModelIdentifier"] = renamed[listed["rootModelIdentifier"]]
    manifest.write_text(json.dumps(listed, indent=4))
    path = package / "Data" / listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"]
    model = proto.Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    path.write_bytes(model.SerializeToString(deterministic=True))
