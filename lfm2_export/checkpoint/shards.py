"""Which files of a folder hold the weights, and that none of them lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lfm2_export.checkpoint.foreign import with_transformers
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.safetensors_file import WeightFile, read_header
from lfm2_export.errors import CheckpointError
from lfm2_export.files import links

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 16 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: Path) -> list[WeightFile]:
    """The one safetensors file, else the shards of the index; their headers are read and checked.

    Raises CheckpointError: nothing there, only pickles, an index that does not match its shards.
    """
    if (folder / SINGLE).is_file():
        return [read_header(inside(folder, SINGLE))]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = next((path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))), None)
    if pickled is not None:
        command = with_transformers(str(folder), f"{folder}-safetensors")
        raise CheckpointError(f"{folder / pickled}: pickled weights are never loaded; if you trust them: {command}")
    raise CheckpointError(f"{folder}: no weights; expected {SINGLE} or {INDEX}")


def inside(folder: Path, name: str) -> Path:
    """Return `folder/name`, refusing a link out of the folder, unless they are followed.

    The hub's cache links its files to its own `blobs/`.
    """
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    try:
        target = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # a link that points to itself
        raise CheckpointError(f"{folder / name}: a link that leads nowhere") from error
    if not links.followed() and not any(target.is_relative_to(allowed) for allowed in roots):
        raise CheckpointError(
            f"{folder / name}: a link that leaves the folder; expected the file itself (or pass --follow-links)"
        )
    return folder / name


def _shards(folder: Path) -> list[WeightFile]:
    index = inside(folder, INDEX)
    homes = read_json(index, _MAX_INDEX).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise CheckpointError(f"{index}: weight_map: expected an object of tensor name → file name")
    for name in homes.values():
        _check_file_name(index, name)
    files = []
    for name in sorted(set(homes.values())):
        if not (folder / name).is_file():
            raise CheckpointError(f"{index}: names the shard {name}, which is missing")
        files.append(read_header(inside(folder, name)))
    _check_index(index, homes, files)
    return files


def _check_file_name(index: Path, name: Any) -> None:
    plain = isinstance(name, str) and name.isprintable() and len(name) < 200
    if not plain or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{index}: weight_map names {name!r:.120}; expected a .safetensors file of this folder")


def _check_index(index: Path, homes: dict[str, str], files: list[WeightFile]) -> None:
    """An index that disagrees with its shards is half of another checkpoint."""
    held = {file.path.name: file.shapes for file in files}
    for tensor, name in homes.items():
        if tensor not in held[name]:
            raise CheckpointError(f"{index}: places tensor {tensor!r:.120} in {name}, which does not hold it")
    for name, shapes in held.items():
        for tensor in shapes:
            if tensor not in homes:
                raise CheckpointError(f"{index}: tensor {tensor!r:.120} of {name} is not in weight_map")
