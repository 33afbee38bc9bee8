"""Weights in several files, and the index that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from hostile_checkpoints.spoil import HOSTILE, INDEX, NORM, WEIGHTS, Spoil, hostile


def shard(folder: Path) -> dict[str, str]:
    """Split the weights in two shards, and return the index's weight_map."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    homes = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        homes |= dict.fromkeys(part, file)
    write_index(folder, homes)
    return homes


def write_index(folder: Path, homes: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def index_with(change: Callable[[Path, dict[str, str]], Any], says: str = INDEX) -> Spoil:
    def spoil(folder: Path) -> str:
        homes = shard(folder)
        write_index(folder, change(folder, homes) or homes)
        return says

    return spoil


def names(file: str) -> Callable[[Path, dict[str, str]], None]:
    return lambda folder, homes: homes.update({NORM: file})


HOSTILE |= {
    "shard_in_the_parent_folder": index_with(names("../model.safetensors")),
    "shard_by_absolute_path": index_with(names("/etc/model.safetensors")),
    "shard_with_a_zero_byte": index_with(names("a\0b.safetensors")),
    "shard_with_a_newline": index_with(names("a\nb.safetensors")),
    "shard_with_an_endless_name": index_with(names("a" * 5000 + ".safetensors")),
    "shard_pickled": index_with(names("pytorch_model.bin")),
    "shard_is_a_number": index_with(lambda folder, homes: homes | {NORM: 3}),
    "shard_missing": index_with(lambda folder, homes: (folder / homes[NORM]).unlink(), "missing"),
    "index_is_a_list": index_with(lambda folder, homes: ["model.safetensors"]),
    "index_names_a_tensor_nobody_has": index_with(lambda folder, homes: homes | {"x": homes[NORM]}),
    "index_omits_a_tensor": index_with(lambda folder, homes: {k: v for k, v in homes.items() if k != NORM}, NORM),
}


@hostile
def shard_repeats_a_tensor(folder: Path) -> str:
    homes = shard(folder)
    first, second = sorted(set(homes.values()))
    twice = next(name for name, file in homes.items() if file == first)
    save_file(load_file(folder / second) | {twice: load_file(folder / first)[twice]}, folder / second)
    return twice


@hostile
def shard_links_to_itself(folder: Path) -> str:
    file = folder / shard(folder)[NORM]
    file.unlink()
    file.symlink_to(file.name)
    return file.name


@hostile
def index_not_json(folder: Path) -> str:
    shard(folder)
    (folder / INDEX).write_text('{"weight_map": {')
    return INDEX
