"""Every spelling of config.json means to us what it means to transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import SIX_LAYERS, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Lfm2Config, Lfm2ForCausalLM
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from lfm2_export.checkpoint.config import from_dict, parse_config, read_config, to_dict
from lfm2_export.errors import CheckpointError
from lfm2_export.model.load import tensor_shapes

WITHOUT_LAYERS = {key: value for key, value in SIX_LAYERS.items() if key != "layer_types"}
WITHOUT_WIDTH = {key: value for key, value in SIX_LAYERS.items() if "intermediate" not in key and "adjust" not in key}

SPELLINGS: dict[str, dict[str, Any]] = {
    "layer_types": SIX_LAYERS,
    "full_attn_idxs": WITHOUT_LAYERS | {"full_attn_idxs": [2, 4]},
    "full_attn_idxs beside null layer_types": WITHOUT_LAYERS | {"full_attn_idxs": [0, 5], "layer_types": None},
    "only attention": SIX_LAYERS | {"layer_types": ["full_attention"] * 6},
    "only convolution": SIX_LAYERS | {"layer_types": ["conv"] * 6},
    "no pattern": WITHOUT_LAYERS,
    "adjusted width": WITHOUT_WIDTH | {"intermediate_size": 300, "block_multiple_of": 32},
    "adjusted width by default multiple": WITHOUT_WIDTH | {"intermediate_size": 300},
    "adjusted width with multiplier": WITHOUT_WIDTH | {"block_ff_dim": 300, "block_ffn_dim_multiplier": 1.3},
    "block_ff_dim wins": WITHOUT_WIDTH | {"block_ff_dim": 300, "intermediate_size": 128, "block_multiple_of": 16},
    "rope_theta": SIX_LAYERS | {"rope_theta": 5e5},
    "rope_parameters": SIX_LAYERS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7}},
    "rope_parameters win": SIX_LAYERS
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 2e6}, "rope_theta": 3.0},
    "tie_embedding": SIX_LAYERS | {"tie_embedding": False},
    "tie_embedding wins": SIX_LAYERS | {"tie_embedding": True, "tie_word_embeddings": False},
    "untied": SIX_LAYERS | {"tie_word_embeddings": False},
    "conv_bias": SIX_LAYERS | {"conv_bias": True},
    "wide convolution": SIX_LAYERS | {"conv_L_cache": 7},
    "narrow convolution": SIX_LAYERS | {"conv_L_cache": 2},
    "head_dim": SIX_LAYERS | {"head_dim": 32},
    "one key-value head": SIX_LAYERS | {"num_key_value_heads": 1},
    "norm_eps": SIX_LAYERS | {"norm_eps": 1e-6},
    "several ends": SIX_LAYERS | {"eos_token_id": [7, 2]},
    "first release": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": True,
        "block_dim": 64,
        "block_ff_dim": 400,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 64,
        "block_norm_eps": 1e-5,
        "block_use_swiglu": True,
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": 64,
        "eos_token_id": 7,
        "full_attn_idxs": [2, 5],
        "hidden_size": 64,
        "max_position_embeddings": 128_000,
        "norm_eps": 1e-5,
        "num_attention_heads": 4,
        "num_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        "use_pos_enc": True,
        "vocab_size": 320,
    },
}


@pytest.mark.parametrize("document", SPELLINGS.values(), ids=SPELLINGS)
def test_means_what_it_means_to_transformers(document: dict[str, Any]) -> None:
    ours = parse_config({"model_type": "lfm2"} | document, "config.json")
    theirs = Lfm2Config(**{key: value for key, value in document.items() if key != "model_type"})
    with torch.device("meta"):
        state = Lfm2ForCausalLM(theirs).state_dict()
    if theirs.tie_word_embeddings:
        del state["lm_head.weight"]
    assert tensor_shapes(ours) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.norm_eps == theirs.norm_eps
    assert ours.layer_types == tuple(theirs.layer_types)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    ends = document["eos_token_id"]
    assert ours.eos_token_ids == (tuple(ends) if isinstance(ends, list) else (ends,))


@given(
    width=st.integers(2, 20_000),
    multiplier=st.one_of(st.none(), st.floats(0.1, 4.0)),
    multiple=st.integers(1, 512),
)
@settings(max_examples=200, deadline=None)
def test_mlp_width_is_the_one_transformers_computes(width: int, multiplier: float | None, multiple: int) -> None:
    document = SIX_LAYERS | {
        "model_type": "lfm2",
        "intermediate_size": width,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": multiplier,
        "block_multiple_of": multiple,
    }
    with torch.device("meta"):  # a namespace: the newest Lfm2Config takes no null multiplier, older ones did
        expected = Lfm2MLP(SimpleNamespace(**document)).w1.out_features
    if expected:
        assert parse_config(document, "config.json").intermediate_size == expected
    else:
        with pytest.raises(CheckpointError, match="intermediate_size"):
            parse_config(document, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(changes=st.dictionaries(st.sampled_from([*SPELLINGS["first release"], "layer_types", "rope_parameters"]), JSON))
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_is_a_config_or_a_one_line_refusal(changes: dict[str, Any]) -> None:
    try:
        config = parse_config(SPELLINGS["first release"] | changes, "config.json")
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = "config.json: "
        assert all(math.prod(shape) > 0 for shape in tensor_shapes(config).values())
        assert from_dict(json.loads(json.dumps(to_dict(config))), "manifest") == config
    assert refusal.startswith("config.json: ")
    assert "\n" not in refusal


def test_absent_ids_stay_absent_and_sizes_do_not() -> None:
    bare = {key: SIX_LAYERS[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "layer_types")}
    document = bare | {"model_type": "lfm2", "num_attention_heads": 8}
    config = parse_config(document, "config.json")
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.conv_L_cache) == (6, 8, 8, 3)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (), None)
    for key in bare.keys() - {"layer_types"}:
        with pytest.raises(CheckpointError, match=key):
            parse_config({name: value for name, value in document.items() if name != key}, "config.json")


def test_a_plain_dictionary_and_back() -> None:
    config = replace(tiny_config(), eos_token_ids=(7, 2), head_dim=16, conv_bias=True, tie_word_embeddings=False)
    assert from_dict(json.loads(json.dumps(to_dict(config))), "manifest.json") == config


def test_file_and_key_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "lfm2", **SIX_LAYERS, "conv_L_cache": "three"}))
    with pytest.raises(CheckpointError) as refusal:
        read_config(path)
    assert str(refusal.value) == f"{path}: conv_L_cache is 'three'; expected a whole number from 2 to 64"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": None}, "hidden_size is missing; expected a whole number from 1 to 1048576"),
        ({"num_attention_heads": None, "num_heads": 0}, "num_heads is 0; expected a whole number from 1 to 1048576"),
        ({"layer_types": ["conv", "mamba"]}, "layer_types.1 is 'mamba'; expected 'conv' or 'full_attention'"),
        ({"layer_types": "conv"}, "layer_types is 'conv'; expected a list of 1 to 1024 times"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn'; expected 'default'"),
        ({"eos_token_id": [7, 320]}, "eos_token_id is 320; expected a token id below vocab_size 320"),
        ({"layer_types": None, "num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"model_type": "llama", "vocab_size": -1, "eos_token_id": -1}, "model_type is 'llama'; only 'lfm2'"),
    ],
)
def test_a_refusal_names_key_value_and_expectation(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse_config(SPELLINGS["first release"] | changes, "config.json")
    assert str(refusal.value).startswith(f"config.json: {says}")
