"""`config.json` → `LFM2Config`: the only description of the architecture that the rest may read.

The keys, their defaults and the arithmetic of the MLP width are those of transformers' `Lfm2Config` and `Lfm2MLP`; the
older spellings are those of the first released checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lfm2_export.errors import CheckpointError

LayerType = Literal["conv", "full_attention"]

_MAX_BYTES = 1 << 20
_MAX_SIZE = 1 << 20  # no width, count or vocabulary comes near
_MAX_LAYERS = 1024
_MAX_CONV_WIDTH = 64
_MAX_NUMBER = 1e15
_THETA = 1e6


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

    Raises CheckpointError, one line that names the file and the key, for anything that is not a plain LFM2.
    """
    return parse_config(read_json(path, _MAX_BYTES), str(path))


def parse_config(document: dict[str, Any], where: str) -> LFM2Config:
    """The same from a parsed document; `where` names it in errors."""
    keys = _Keys(document, where)
    if (found := document.get("model_type")) != "lfm2":
        raise CheckpointError(f"{where}: model_type is {found!r:.80}; only 'lfm2' is supported")
    if document.get("quantization_config") is not None:
        raise CheckpointError(f"{where}: quantization_config: expected none, plain F32, F16 or BF16 weights")
    hidden = keys.size("hidden_size")
    vocab = keys.size("vocab_size")
    heads = keys.size("num_attention_heads", "num_heads")
    kv_heads = keys.size("num_key_value_heads", default=8)
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads}: expected a multiple of num_key_value_heads {kv_heads}"
        )
    return LFM2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=_mlp_width(keys),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=_head_dim(keys, hidden, heads),
        layer_types=_layer_types(keys),
        conv_L_cache=keys.size("conv_L_cache", default=3, low=2, high=_MAX_CONV_WIDTH),
        conv_bias=keys.flag("conv_bias", default=False),
        norm_eps=keys.positive("norm_eps", "block_norm_eps", default=1e-5),
        rope_theta=_rope_theta(keys),
        tie_word_embeddings=keys.flag("tie_embedding", "tie_word_embeddings", default=True),
        max_position_embeddings=keys.size("max_position_embeddings", default=128_000, high=1 << 24),
        bos_token_id=keys.token("bos_token_id", vocab),
        eos_token_ids=token_ids(document, vocab, where),
        pad_token_id=keys.token("pad_token_id", vocab),
    )


def to_dict(config: LFM2Config) -> dict[str, Any]:
    """A plain JSON document of the resolved shape."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(document: dict[str, Any], where: str) -> LFM2Config:
    """The inverse of `to_dict`, with the same checks as a `config.json`; `where` names the source in errors."""
    known = {"model_type": "lfm2", "block_auto_adjust_ff_dim": False, "eos_token_id": document.get("eos_token_ids")}
    return parse_config(document | known, where)


def token_ids(document: dict[str, Any], vocab_size: int, where: str) -> tuple[int, ...]:
    """`eos_token_id`, one id or a list of them, of a config or generation config. CheckpointError if out of range."""
    value = document.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
        raise _Keys(document, where).fail("eos_token_id", f"token ids below vocab_size {vocab_size}")
    return tuple(ids)


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. CheckpointError otherwise."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; expected a JSON file")
        if (size := path.stat().st_size) > limit:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {limit}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {(str(error).splitlines() or ['?'])[0]}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


class _Keys:
    """Typed access to a document under several spellings, with errors that name file, key and expectation."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        self.document = document
        self.where = where

    def find(self, *names: str) -> tuple[str, Any]:
        """The first spelling that is present and not null, and its value."""
        for name in names:
            if self.document.get(name) is not None:
                return name, self.document[name]
        return " or ".join(names), None

    def fail(self, name: str, expected: str) -> CheckpointError:
        value = self.document.get(name)
        found = "missing" if value is None else f"{value!r:.80}"
        return CheckpointError(f"{self.where}: {name} is {found}; expected {expected}")

    def size(self, *names: str, default: int | None = None, low: int = 1, high: int = _MAX_SIZE) -> int:
        name, value = self.find(*names)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(name, f"a whole number from {low} to {high}")
        return value

    def positive(self, *names: str, default: float) -> float:
        name, value = self.find(*names)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MAX_NUMBER:
            raise self.fail(name, f"a positive number below {_MAX_NUMBER:g}")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        name, value = self.find(*names)
        if value is not None and not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return default if value is None else value

    def token(self, name: str, vocab_size: int) -> int | None:
        value = self.document.get(name)
        return None if value is None else self.size(name, low=0, high=vocab_size - 1)


def _mlp_width(keys: _Keys) -> int:
    """The true width of w1 and w3, as transformers' Lfm2MLP computes it."""
    stated = width = keys.size("block_ff_dim", "intermediate_size")
    if not keys.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    # an explicit null means: no multiplier and no rounding either
    if keys.document.get("block_ffn_dim_multiplier", 1.0) is not None:
        multiple = keys.size("block_multiple_of", default=256)
        width = int(keys.positive("block_ffn_dim_multiplier", default=1.0) * width)
        width = multiple * ((width + multiple - 1) // multiple)
    if not 1 <= width <= _MAX_SIZE:
        raise CheckpointError(f"{keys.where}: intermediate_size {stated} adjusts to {width}; expected 1 to {_MAX_SIZE}")
    return width


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    if keys.document.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"{keys.where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    width = keys.size("head_dim", default=hidden // heads)
    if width % 2:
        raise CheckpointError(f"{keys.where}: head_dim {width} is odd; rotary positions need pairs")
    return width


def _layer_types(keys: _Keys) -> tuple[LayerType, ...]:
    kinds = keys.document.get("layer_types")
    count = keys.size("num_hidden_layers", default=len(kinds) if isinstance(kinds, list) else None, high=_MAX_LAYERS)
    if keys.document.get("sliding_window"):
        raise keys.fail("sliding_window", "none: attention over a sliding window is not supported")
    if kinds is None:
        attention = keys.document.get("full_attn_idxs")
        attention = list(range(count)) if attention is None else attention
        if not isinstance(attention, list) or any(type(i) is not int or not 0 <= i < count for i in attention):
            raise keys.fail("full_attn_idxs", f"a list of layer indices below {count}")
        kinds = ["full_attention" if i in attention else "conv" for i in range(count)]
    if not isinstance(kinds, list) or not kinds:
        raise keys.fail("layer_types", "a list of 'conv' and 'full_attention'")
    if (strange := next((kind for kind in kinds if kind not in ("conv", "full_attention")), None)) is not None:
        raise CheckpointError(f"{keys.where}: layer_types holds {strange!r:.80}; expected 'conv' or 'full_attention'")
    if len(kinds) != count or count > _MAX_LAYERS:
        raise CheckpointError(f"{keys.where}: layer_types has {len(kinds)} entries; expected num_hidden_layers {count}")
    return cast(tuple[LayerType, ...], tuple(kinds))


def _rope_theta(keys: _Keys) -> float:
    _whole_rotation(keys)
    for name in ("rope_scaling", "rope_parameters"):  # transformers' precedence
        rope = keys.document.get(name) or {}
        if not isinstance(rope, dict):
            raise keys.fail(name, "an object")
        inner = _Keys(rope, f"{keys.where}: {name}")
        for spelling in ("rope_type", "type"):
            if rope.get(spelling, "default") != "default":
                raise inner.fail(spelling, "'default'; other rotary scalings are not supported")
        _whole_rotation(inner)
        if rope.get("rope_theta") is not None:
            return inner.positive("rope_theta", default=_THETA)
    return keys.positive("rope_theta", "theta", default=_THETA)


def _whole_rotation(keys: _Keys) -> None:
    if keys.document.get("partial_rotary_factor") not in (None, 1):
        raise keys.fail("partial_rotary_factor", "1: partial rotation is not supported")
