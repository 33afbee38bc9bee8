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
from transformers import AutoConfig, AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP
from transformers.models.lfm3.modeling_lfm3 import Lfm3RotaryEmbedding

from lfm2_export.checkpoint.config import from_dict, parse_config, read_config, to_dict
from lfm2_export.errors import CheckpointError
from lfm2_export.model.decoder import layouts
from lfm2_export.model.load import tensor_shapes
from lfm2_export.model.operators import rotary_frequencies

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


LFM3 = {key: value for key, value in SIX_LAYERS.items() if "adjust" not in key and key != "layer_types"} | {
    "model_type": "lfm3",
    "head_dim": 16,
}
SLIDING = {"rope_type": "default", "rope_theta": 2e4}
FULL = {"rope_type": "proportional", "rope_theta": 5e5, "partial_rotary_factor": 0.25}
MOE = {key: value for key, value in SIX_LAYERS.items() if "adjust" not in key} | {
    "model_type": "lfm2_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
FAMILY: dict[str, dict[str, Any]] = {
    "LFM3 by its defaults": LFM3,
    "LFM3's own pattern and window": LFM3
    | {"layer_types": ["sliding_attention", "conv"] * 3, "sliding_window": 9, "conv_L_cache": 3},
    "LFM3 without its own": LFM3 | {"use_sandwich_norm": False, "use_attention_gate": False, "attention_bias": True},
    "LFM3's rotary kinds": LFM3 | {"rope_parameters": {"sliding_attention": SLIDING, "full_attention": FULL}},
    "LFM3 untied": LFM3 | {"tie_word_embeddings": False, "conv_bias": True},
    "LFM2-MoE by its defaults": MOE,
    "LFM2-MoE without its own": MOE | {"use_expert_bias": False, "norm_topk_prob": False, "num_dense_layers": 0},
    "LFM2-MoE dense throughout": MOE | {"num_dense_layers": 6},
    "LFM2-MoE in its own numbers": MOE
    | {"routed_scaling_factor": 2.5, "rope_parameters": {"rope_type": "default", "rope_theta": 2e6}},
}


@pytest.mark.parametrize("document", FAMILY.values(), ids=FAMILY)
def test_the_family_means_what_it_means_to_transformers(document: dict[str, Any]) -> None:
    ours = parse_config(document, "config.json")
    theirs = AutoConfig.for_model(**(document | {"pad_token_id": 0, "bos_token_id": 1}))
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(theirs).state_dict()
    if theirs.tie_word_embeddings:
        del state["lm_head.weight"]
    held = {each.name: each.shape for each in layouts(ours)[-1]}
    assert held == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert from_dict(json.loads(json.dumps(to_dict(ours))), "manifest.json") == ours
    assert ours.layer_types == tuple(theirs.layer_types)
    assert (ours.norm_eps, ours.conv_L_cache, ours.head_dim) == (1e-5, theirs.conv_L_cache, 16)
    if document["model_type"] == "lfm2_moe":
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        for key in ("num_experts_per_tok", "use_expert_bias", "norm_topk_prob", "routed_scaling_factor"):
            assert getattr(ours, key) == getattr(theirs, key)
        return
    assert ours.sliding_window == (theirs.sliding_window if ours.sliding_layers else None)
    rotary = Lfm3RotaryEmbedding(theirs)
    for kind in set(ours.layer_types) - {"conv"}:
        frequencies = getattr(rotary, f"{kind}_inv_freq")
        torch.testing.assert_close(rotary_frequencies(16, *ours.rotary(kind)), frequencies, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rope_parameters": {"full_attention": FULL | {"rope_type": "yarn"}}},
            "rope_type is 'yarn'; expected 'default'",
        ),
        ({"rope_parameters": {"full_attention": FULL | {"factor": 4.0}}}, "factor is 4.0; expected 1"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "expected an object each for full_attention",
        ),
        ({"rope_parameters": {"sliding_attention": SLIDING | {"partial_rotary_factor": 0.5}}}, "0.5; expected 1 with"),
        ({"rope_scaling": {"rope_type": "linear"}}, "expected none: LFM3 has rope_parameters"),
        ({"sliding_window": 1}, "sliding_window is 1; expected a whole number from 2"),
        ({"layer_types": ["sliding_attention"] * 6, "sliding_window": None}, "sliding_window is missing"),
        ({"layer_types": ["conv"] * 5}, "layer_types has 5 entries; expected num_hidden_layers 6"),
        ({"layer_types": ["mamba"] * 6}, "expected 'conv', 'full_attention' or 'sliding_attention'"),
        ({"model_type": "lfm2_moe", "num_experts": 2}, "num_experts_per_tok is 4; expected at most num_experts 2"),
        ({"model_type": "lfm2_moe", "layer_types": ["sliding_attention"] * 6}, "expected 'conv' or 'full_attention'"),
        (
            {"model_type": "lfm2_moe", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
            "rope_type is 'yarn'; expected 'default'",
        ),
        ({"model_type": "lfm2_moe", "sliding_window": 8}, "sliding_window is 8; expected none"),
        ({"model_type": "lfm2_vl"}, "only 'lfm2', 'lfm2_moe' and 'lfm3' are supported"),
    ],
)
def test_what_the_family_does_not_have_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse_config(LFM3 | changes, "config.json")
    assert str(refusal.value).startswith("config.json: ")
    assert says in str(refusal.value)


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


@pytest.mark.parametrize("document", [SPELLINGS["first release"], LFM3, MOE], ids=["lfm2", "lfm3", "lfm2_moe"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_is_a_config_or_a_one_line_refusal(document: dict[str, Any], data: st.DataObject) -> None:
    own = ("sliding_window", "num_experts", "use_expert_bias", "num_dense_layers", "routed_scaling_factor")
    keys = st.sampled_from([*document, "layer_types", "rope_parameters", *own])
    changes = data.draw(st.dictionaries(keys, JSON))
    try:
        config = parse_config(document | changes, "config.json")
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
