"""What calibration decided, as tensors: kept while a run goes on, and beside the artifact, where parity reads it.

Other machines sum in another order and would end at other integers, so a proof there needs these and not a second run.
Names are the model's own: `<module>.values` (two 4-bit integers in a byte, the first in its low half; or int8
`[rows, columns]`), `<module>.scales [rows, groups]` in the precision they are stored in, and by its own name, in fp32,
every other parameter that smoothing has changed. `<experts>.tokens [experts] int64` says how many tokens chose each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.files.failures import out_of
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder
from lfm2_export.model.state import FLOAT_DTYPES
from lfm2_export.quantize.apply import install, integers, quantize_module, quantized_weight, round_caches
from lfm2_export.quantize.coverage import TOKENS
from lfm2_export.quantize.scheme import QuantizationRule, Rules, WeightScheme, rules_by_path

FILE = "quantized.safetensors"

Record = dict[str, Tensor]
ByPath = Mapping[str, QuantizationRule | None]


def recorded(decoder: Decoder, path: str, scheme: WeightScheme) -> Record:
    """The integers and scales of one quantized module."""
    grid = quantized_weight(decoder.get_submodule(path))
    assert grid is not None  # its rule has a scheme of integers
    values = grid.values
    if scheme.bits == 4:
        values = (values[:, 0::2] & 15 | values[:, 1::2] << 4).view(torch.uint8)
    return {
        f"{path}.values": values.contiguous(),
        f"{path}.scales": grid.scales.to(FLOAT_DTYPES[scheme.scale]).contiguous(),
    }


def replay(decoder: Decoder, part: str, record: Record, rules: ByPath) -> None:
    """Do to a top-level part of the exact decoder, in place, what the record says. ArtifactError if it does not fit."""
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    for name, tensor in record.items():
        if _within(name, part) and not name.endswith((".values", ".scales", TOKENS)):
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise ArtifactError(f"{FILE}: {name} is no parameter of this model, or of another shape")
            owner, _, attribute = name.rpartition(".")
            setattr(decoder.get_submodule(owner), attribute, nn.Parameter(tensor.float(), requires_grad=False))
    for path, rule in rules.items():
        if not _within(path, part):
            continue
        scheme = integers(rule)
        if scheme is None:
            quantize_module(decoder, path, rule)
        else:
            module = cast(nn.Linear, decoder.get_submodule(path))
            install(decoder, path, rule, *_placed(record, path, scheme, module.weight.shape))


def load_recorded(checkpoint: Checkpoint, rules: Rules, cache: str, record: Record) -> Decoder:
    """The checkpoint, quantized as the record says. Raises CheckpointError, and ArtifactError if it does not fit."""
    by_path = rules_by_path(checkpoint.config, rules)

    def completed(decoder: Decoder, part: str) -> None:
        replay(decoder, part, record, by_path)
        if part == "embed_tokens" and checkpoint.config.tie_word_embeddings:
            replay(decoder, "lm_head", record, by_path)

    return round_caches(load_decoder(checkpoint, completed=completed), cache)


def write_record(path: Path, record: Record) -> None:
    """Write a safetensors file. Raises the system's OSError."""
    try:
        save_file(record, path)
    except SafetensorError as error:
        raise out_of(error) or error from error
    path.chmod(0o644)


def read_record(path: Path) -> Record:
    """ArtifactError when the file is missing or damaged."""
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, and this artifact's quantization cannot be repeated without it")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {one_line(error)}") from error


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _placed(record: Record, path: str, scheme: WeightScheme, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The matrix `[rows, columns] fp32` on its grid, and the scales `[rows, groups] fp32`."""
    source = "embed_tokens" if path == "lm_head" and "lm_head.values" not in record else path  # stored once
    values, scales = record.get(f"{source}.values"), record.get(f"{source}.scales")
    rows, columns = shape
    groups = columns // (scheme.group or columns)
    packed = (rows, columns // 2) if scheme.bits == 4 else (rows, columns)
    if values is None or scales is None or values.shape != packed or scales.shape != (rows, groups):
        raise ArtifactError(f"{FILE}: {path}: missing, or not the {rows} × {columns} matrix of this model")
    if scheme.bits == 4:
        low, high = values.view(torch.int8) << 4 >> 4, values.view(torch.int8) >> 4
        values = torch.stack((low, high), dim=-1).flatten(1)
    scales = scales.float()
    return (values.float().unflatten(1, (groups, -1)) * scales.unsqueeze(-1)).flatten(1), scales
