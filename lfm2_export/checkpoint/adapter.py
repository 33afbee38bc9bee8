"""LoRA adapters as PEFT leaves them: merged onto their base in fp32, by PEFT itself, and from then on a checkpoint.

A folder with `adapter_config.json` and without `config.json` is one (PEFT, docs/source/developer_guides/checkpoint.md).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.safetensors_file import read_header
from lfm2_export.checkpoint.shards import inside
from lfm2_export.errors import CheckpointError, one_line
from lfm2_export.extras import require
from lfm2_export.files import Need, check_room, sha256

if TYPE_CHECKING:
    from lfm2_export.checkpoint.source import Checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG = 1 << 20
_FP32 = 4


class Adapter(NamedTuple):
    """What was merged: digests of both parts, as the manifest names them."""

    folder: Path
    weights_sha256: str  # of adapter_model.safetensors
    base: str  # "nano", a folder's name, or a hub id
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


def merge(folder: Path, base: Checkpoint, companions: Mapping[str, Path], into: Path) -> Adapter:
    """Write the merged checkpoint, in fp32 and with those companions, into the empty folder `into`.

    Raises CheckpointError, one line, for an adapter that does not fit its base, MissingDependencyError without PEFT.
    """
    require("peft", "peft", "lora", f"{folder} is a LoRA adapter: merging it")
    shapes = read_header(inside(folder, WEIGHTS)).shapes
    base_shapes = [shape for file in base.weights.files for shape in file.shapes.values()]
    check_room(Need(into, _FP32 * sum(map(math.prod, base_shapes)), "the merged weights (LFM2_EXPORT_CACHE)"))
    # a vocabulary that was made larger is stored whole beside the low-rank parts
    whole = [shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight") and len(shape) == 2]
    try:
        _merge(folder, base.folder, max(whole, default=base.config.vocab_size), into)
    except Exception as error:  # PEFT and transformers raise from their own, torch's and Python's families
        raise CheckpointError(f"{folder}: does not fit its base {base.name}: {one_line(error)}") from error
    for name, path in companions.items():
        if name != "config.json":  # the merged model's own
            shutil.copyfile(path, into / name)
    return Adapter(folder, sha256(folder / WEIGHTS), base.name, base.revision, base.digest(), base.random_weights)


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
