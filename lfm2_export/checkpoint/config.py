"""`config.json` → `LFM2Config`: the only description of the architecture that the rest may read.

`config_keys.py` says which keys a `config.json` may have; here is what they mean together. The arithmetic of the MLP
width is that of transformers' `Lfm2MLP`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm2_export.checkpoint.config_keys import MAX_SIZE, ConfigKeys, EndKeys, LayerType, read_keys
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.errors import CheckpointError

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class LFM2Config:
    """The shape of one LFM2 decoder, with every spelling of `config.json` already resolved.

    `intermediate_size` is the true width of w1/w3 (after `block_auto_adjust_ff_dim`).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    conv_L_cache: int
    conv_bias: bool
    norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Indices of the gated short-convolution layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the grouped-query attention layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")


def read_config(path: Path) -> LFM2Config:
    """Read and check a `config.json`.

    Raise CheckpointError, one line that names the file and the key, for anything that is not a plain LFM2.
    """
    return parse_config(read_json(path, _MAX_BYTES), str(path))


def parse_config(document: dict[str, Any], where: str) -> LFM2Config:
    """Return the shape that a parsed `config.json` describes; `where` names it in errors. Raise CheckpointError."""
    keys = read_keys(ConfigKeys, document, where)
    if keys.num_attention_heads % keys.num_key_value_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {keys.num_attention_heads}: expected a multiple of num_key_value_heads "
            f"{keys.num_key_value_heads}"
        )
    _check_token("bos_token_id", keys.bos_token_id, keys.vocab_size, where)
    _check_token("pad_token_id", keys.pad_token_id, keys.vocab_size, where)
    return LFM2Config(
        vocab_size=keys.vocab_size,
        hidden_size=keys.hidden_size,
        intermediate_size=_mlp_width(keys, where),
        num_attention_heads=keys.num_attention_heads,
        num_key_value_heads=keys.num_key_value_heads,
        head_dim=_head_dim(keys, where),
        layer_types=_layer_types(keys, where),
        conv_L_cache=keys.conv_L_cache,
        conv_bias=keys.conv_bias,
        norm_eps=keys.norm_eps,
        rope_theta=keys.rope_scaling.rope_theta or keys.rope_parameters.rope_theta or keys.rope_theta,
        tie_word_embeddings=keys.tie_word_embeddings,
        max_position_embeddings=keys.max_position_embeddings,
        bos_token_id=keys.bos_token_id,
        eos_token_ids=token_ids(document, keys.vocab_size, where),
        pad_token_id=keys.pad_token_id,
    )


def to_dict(config: LFM2Config) -> dict[str, Any]:
    """Return a plain JSON document of the resolved shape."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(document: dict[str, Any], where: str) -> LFM2Config:
    """Return what `to_dict` was given, after the checks of a `config.json`; `where` names the source in errors."""
    known = {"model_type": "lfm2", "block_auto_adjust_ff_dim": False, "eos_token_id": document.get("eos_token_ids")}
    return parse_config(document | known, where)


def token_ids(document: dict[str, Any], vocab_size: int, where: str) -> tuple[int, ...]:
    """Return `eos_token_id`, one id or a list of them, of a config or generation config.

    Raise CheckpointError if one is not in the vocabulary.
    """
    ids = read_keys(EndKeys, document, where).eos_token_id
    for token in ids:
        _check_token("eos_token_id", token, vocab_size, where)
    return tuple(ids)


def _check_token(name: str, token: int | None, vocab_size: int, where: str) -> None:
    if token is not None and token >= vocab_size:
        raise CheckpointError(f"{where}: {name} is {token}; expected a token id below vocab_size {vocab_size}")


def _mlp_width(keys: ConfigKeys, where: str) -> int:
    """The true width of w1 and w3, as transformers' Lfm2MLP computes it."""
    width = keys.intermediate_size
    if not keys.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if keys.block_ffn_dim_multiplier is not None:
        width = int(keys.block_ffn_dim_multiplier * width)
        width = keys.block_multiple_of * -(-width // keys.block_multiple_of)
    if not 1 <= width <= MAX_SIZE:
        raise CheckpointError(
            f"{where}: intermediate_size {keys.intermediate_size} adjusts to {width}; expected 1 to {MAX_SIZE}"
        )
    return width


def _head_dim(keys: ConfigKeys, where: str) -> int:
    hidden, heads = keys.hidden_size, keys.num_attention_heads
    if keys.head_dim is None and hidden % heads:
        raise CheckpointError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    width = keys.head_dim or hidden // heads
    if width % 2:
        raise CheckpointError(f"{where}: head_dim {width} is odd; rotary positions need pairs")
    return width


def _layer_types(keys: ConfigKeys, where: str) -> tuple[LayerType, ...]:
    """Each layer's kind: as listed, else by the indices of attention layers, else all attention."""
    kinds, count = keys.layer_types, keys.num_hidden_layers
    if kinds is not None:
        if count not in (None, len(kinds)):
            raise CheckpointError(f"{where}: layer_types has {len(kinds)} entries; expected num_hidden_layers {count}")
        return tuple(kinds)
    if count is None:
        raise CheckpointError(f"{where}: num_hidden_layers is missing; expected it, or layer_types")
    attention = range(count) if keys.full_attn_idxs is None else keys.full_attn_idxs
    if (beyond := next((index for index in attention if index >= count), None)) is not None:
        raise CheckpointError(f"{where}: full_attn_idxs holds {beyond}; expected layer indices below {count}")
    return tuple("full_attention" if index in attention else "conv" for index in range(count))
