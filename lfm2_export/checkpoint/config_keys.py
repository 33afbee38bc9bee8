"""The keys of `config.json` that are read, under every spelling, with the values that each may have.

The keys and their defaults are those of transformers' `Lfm2Config`, `Lfm2MoeConfig` and `Lfm3Config`; the older
spellings are those of the first released checkpoints. An absent key and a null one mean the same. Keys that are not
listed are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lfm2_export.checkpoint.foreign import with_transformers
from lfm2_export.errors import CheckpointError

MAX_SIZE = 1 << 20  # no width, count or vocabulary comes near
_MAX_NUMBER = 1e15
MAX_LAYERS = 1024
_MAX_EXPERTS = 1024
LFM3_LAYERS = 24  # where neither their number nor their kinds are given
_DEQUANTIZED = "to get them: " + with_transformers(
    "FOLDER", "FOLDER-plain", then=".dequantize()", save=", save_original_format=False"
)
ModelType = Literal["lfm2", "lfm2_moe", "lfm3"]
ARCHITECTURES: dict[ModelType, str] = {  # what transformers calls a decoder with its head
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "lfm3": "Lfm3ForCausalLM",
}
LayerType = Literal["conv", "full_attention", "sliding_attention"]
Keys = TypeVar("Keys", bound=BaseModel)


def only(message: str, allowed: Callable[[Any], bool] = lambda _: True) -> WrapValidator:
    """Refuse a value of the wrong type, or not `allowed`, with a message that tells all that is expected of it."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            valid = validate(value)
        except ValidationError as error:
            if any(each["loc"] for each in error.errors()):
                raise  # something inside the value is wrong, and says so itself
            raise PydanticCustomError("unexpected", "{message}", {"message": message}) from error
        if not allowed(valid):
            raise PydanticCustomError("unexpected", "{message}", {"message": message})
        return valid

    return WrapValidator(check)


def whole(low: int = 1, high: int = MAX_SIZE) -> WrapValidator:
    """Refuse what is no whole number from `low` to `high`."""
    return only(f"expected a whole number from {low} to {high}", lambda value: low <= value <= high)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def spelled(*names: str, default: Any = None) -> Any:
    """A key with more than one spelling; of those present the first counts. Without a default it is required."""
    return Field(default, validation_alias=AliasChoices(*names), validate_default=True)


required = Field(None, validate_default=True)  # a missing key is refused in the words in which a wrong value is

Size = Annotated[int, whole()]
ConvWidth = Annotated[int, whole(low=2, high=64)]
Token = Annotated[int, whole(low=0)]
Tokens = Annotated[list[Token], BeforeValidator(_as_list)]  # one id, or a list of them
Number = Annotated[
    float, only(f"expected a positive number below {_MAX_NUMBER:g}", lambda value: 0 < value < _MAX_NUMBER)
]
Flag = Annotated[bool, only("expected true or false")]
_Scaling = Annotated[Literal["default"], only("expected 'default'; other rotary scalings are not supported")]
_One = Annotated[float, only("expected 1: partial rotation is not supported", lambda value: value == 1)]


class Document(BaseModel):
    """An object of a `config.json`, of which the keys named are read and others ignored; null and absent are one."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    null_means_none: ClassVar[str] = ""  # the key of which null is a value of its own

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {key: value for key, value in document.items() if value is not None or key == cls.null_means_none}


class RopeKeys(Document):
    """The keys of `rope_parameters`, or of `rope_scaling` in the older spelling."""

    rope_type: _Scaling = "default"
    type: _Scaling = "default"
    partial_rotary_factor: _One = 1.0
    rope_theta: Number | None = None


class EndKeys(Document):
    """The only key that a `generation_config.json` is read for."""

    eos_token_id: Tokens = []


def _pattern(kinds: str) -> WrapValidator:
    many = f"expected a list of 1 to {MAX_LAYERS} times {kinds}"
    return only(many, lambda listed: 1 <= len(listed) <= MAX_LAYERS)


class TypeKey(Document):
    """The key that says which of the classes below reads the others."""

    model_type: Annotated[ModelType, only("only 'lfm2', 'lfm2_moe' and 'lfm3' are supported")] = required


class ConfigKeys(Document):
    """The keys of the family's `config.json`, each by itself; `config.py` says what they mean together."""

    quantization_config: Annotated[None, only(f"expected none, plain F32, F16 or BF16 weights; {_DEQUANTIZED}")] = None
    vocab_size: Size = required
    hidden_size: Size = required
    num_attention_heads: Size = spelled("num_attention_heads", "num_heads")
    num_key_value_heads: Size = 8
    head_dim: Size | None = None
    num_hidden_layers: Annotated[int, whole(high=MAX_LAYERS)] | None = None
    conv_bias: Flag = False
    norm_eps: Number = spelled("norm_eps", "block_norm_eps", default=1e-5)
    max_position_embeddings: Annotated[int, whole(high=1 << 24)] = 128_000
    bos_token_id: Token | None = None
    eos_token_id: Tokens = []
    pad_token_id: Token | None = None


class _Lfm2LayerKeys(ConfigKeys):
    """What LFM2 and LFM2-MoE have in common."""

    sliding_window: Annotated[
        Literal[0, False], only("expected none: attention over a sliding window is not supported")
    ] = 0
    layer_types: (
        Annotated[
            list[Annotated[Literal["conv", "full_attention"], only("expected 'conv' or 'full_attention'")]],
            _pattern("'conv' or 'full_attention'"),
        ]
        | None
    ) = None
    full_attn_idxs: Annotated[list[Token], only("expected a list of layer indices")] | None = None
    conv_L_cache: ConvWidth = 3
    rope_scaling: Annotated[RopeKeys, only("expected an object")] = RopeKeys()
    rope_parameters: Annotated[RopeKeys, only("expected an object")] = RopeKeys()
    rope_theta: Number = spelled("rope_theta", "theta", default=1e6)
    partial_rotary_factor: _One = 1.0
    tie_word_embeddings: Flag = spelled("tie_embedding", "tie_word_embeddings", default=True)


class Lfm2Keys(_Lfm2LayerKeys):
    """The keys of LFM2."""

    null_means_none = "block_ffn_dim_multiplier"
    intermediate_size: Size = spelled("block_ff_dim", "intermediate_size")
    block_auto_adjust_ff_dim: Flag = True
    block_ffn_dim_multiplier: Number | None = 1.0  # null: no multiplier, and no rounding to a multiple either
    block_multiple_of: Size = 256


class Lfm2MoeKeys(_Lfm2LayerKeys):
    """The keys of LFM2-MoE."""

    intermediate_size: Size = required
    num_dense_layers: Annotated[int, whole(low=0, high=MAX_LAYERS)] = 2
    num_experts: Annotated[int, whole(high=_MAX_EXPERTS)] = 32
    num_experts_per_tok: Annotated[int, whole(high=_MAX_EXPERTS)] = 4
    moe_intermediate_size: Size = 1792
    use_expert_bias: Flag = True
    norm_topk_prob: Flag = True
    routed_scaling_factor: Number = 1.0


class LayerRopeKeys(Document):
    """The rotary keys of one kind of attention layer of LFM3."""

    rope_type: Annotated[
        Literal["default", "proportional"],
        only("expected 'default' or 'proportional'; other rotary scalings are not supported"),
    ] = "default"
    rope_theta: Number = required
    partial_rotary_factor: Annotated[float, only("expected a number from 0 to 1", lambda value: 0 <= value <= 1)] = 1.0
    factor: Annotated[float, only("expected 1: scaled positions are not supported", lambda value: value == 1)] = 1.0


class RopeByLayerKeys(Document):
    """The keys of LFM3's `rope_parameters`."""

    full_attention: Annotated[LayerRopeKeys, only("expected an object")] = LayerRopeKeys(
        rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.5
    )
    sliding_attention: Annotated[LayerRopeKeys, only("expected an object")] = LayerRopeKeys(rope_theta=1e4)
    rope_type: Annotated[None, only("expected an object each for full_attention and sliding_attention")] = None


class Lfm3Keys(ConfigKeys):
    """The keys of LFM3."""

    null_means_none = "sliding_window"
    num_key_value_heads: Size = 4
    head_dim: Size = 128
    layer_types: (
        Annotated[
            list[Annotated[LayerType, only("expected 'conv', 'full_attention' or 'sliding_attention'")]],
            _pattern("'conv', 'full_attention' or 'sliding_attention'"),
        ]
        | None
    ) = None
    intermediate_size: Size = required
    conv_L_cache: ConvWidth = 7
    norm_eps: Number = spelled("norm_eps", "rms_norm_eps", default=1e-5)
    sliding_window: Annotated[int, whole(low=2)] | None = 256
    use_sandwich_norm: Flag = True
    use_attention_gate: Flag = True
    attention_bias: Flag = False
    rope_scaling: Annotated[None, only("expected none: LFM3 has rope_parameters")] = None
    rope_parameters: Annotated[RopeByLayerKeys, only("expected an object")] = RopeByLayerKeys()
    tie_word_embeddings: Flag = True


def read_keys(keys: type[Keys], document: dict[str, Any], where: str) -> Keys:
    """Return the document's keys. Raise CheckpointError, one line that names file, key, value and what is expected."""
    try:
        return keys.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        found = "missing" if first["input"] is None else f"{first['input']!r:.80}"
        raise CheckpointError(f"{where}: {name} is {found}; {first['msg']}") from error
