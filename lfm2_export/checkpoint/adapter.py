"""LoRA adapters as PEFT leaves them: merged onto their base in fp32, by PEFT itself, and from then on a checkpoint.

A folder with `adapter_config.json` and without `config.json` is one (PEFT, docs/source/developer_guides/checkpoint.md).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.safetensors_file import WeightFile, read_header
from lfm2_export.checkpoint.shards import inside
from lfm2_export.errors import CheckpointError, one_line
from lfm2_export.extras import require
from lfm2_export.files import Need, check_room

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG = 1 << 20
_FP32 = 4


class Adapter(NamedTuple):
    """What was merged: digests of both parts, as the manifest names them."""

    folder: Path
    weights_sha256: str  # of adapter_model.safetensors
    base: str  # an embedded model's name, a folder's, or a hub id
    base_revision: str | None
    base_sha256: str  # as `Checkpoint.digest`
    random_base: bool


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds a PEFT adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path, given: str | None) -> str:
    """Return the base to merge onto, a folder or a hub id: `given`, else the one that the adapter's config names.

    Raises CheckpointError for an adapter that is no LoRA, names no base, or whose weights are missing or pickled.
    """
    config = inside(folder, CONFIG)
    read = read_json(config, _MAX_CONFIG)
    if read.get("peft_type") != "LORA":
        raise CheckpointError(f"{config}: peft_type is {read.get('peft_type')!r:.40}; expected 'LORA'")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS}; pickled adapters are never loaded, save it with PEFT once more")
    base = given or read.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{config}: names no base_model_name_or_path; pass --base, a folder or a hub id")
    return base


def merge(folder: Path, base: Path, weights: Sequence[WeightFile], companions: Mapping[str, Path], into: Path) -> None:
    """Write the merged checkpoint, in fp32 and with those companions, into the empty folder `into`.

    `weights` are the headers of the base's files. Raises CheckpointError, one line, for an adapter that does not fit
    its base, MissingDependencyError without PEFT.
    """
    require("peft", "peft", "lora", f"{folder} is a LoRA adapter: merging it")
    adapted = read_header(inside(folder, WEIGHTS))
    size = _FP32 * sum(math.prod(shape) for file in weights for shape in file.shapes.values())
    check_room(Need(into, size, "the merged weights (LFM2_EXPORT_CACHE)"))
    try:
        _merge(folder, base, _vocabulary([adapted]) or _vocabulary(weights), into)
    except Exception as error:  # PEFT and transformers raise from their own, torch's and Python's families
        raise CheckpointError(f"{folder}: does not fit its base {base}: {one_line(error)}") from error
    for name, path in companions.items():
        if name != "config.json":  # the merged model's own
            shutil.copyfile(path, into / name)


def _vocabulary(weights: Iterable[WeightFile]) -> int:
    """Rows of the embedding; 0 where it is not stored. An adapter stores it whole where the vocabulary was resized."""
    shapes = [shape for file in weights for name, shape in file.shapes.items() if name.endswith("embed_tokens.weight")]
    return shapes[0][0] if shapes and shapes[0] else 0


def _merge(folder: Path, base: Path, vocabulary: int, into: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    if vocabulary != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    merged = PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload(safe_merge=True)
    if not torch.equal(merged.get_input_embeddings().weight, merged.get_output_embeddings().weight):
        merged.config.tie_word_embeddings = False  # one of them was trained alone
    merged.save_pretrained(into)
