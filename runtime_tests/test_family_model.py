"""LFM3's and LFM2-MoE's traced model equals transformers' in fp32, however fed, far past the sliding window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import make_lfm3_pair, make_moe_pair
from safetensors.torch import save_file
from test_traced_model import TOLERANCE, check_resident, feed
from torch import Tensor

from lfm2_export.checkpoint.config import from_dict, to_dict
from lfm2_export.graph.interpret import interpret
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.random_init import SIZES
from lfm2_export.model.state import empty_state, state_shapes

CHEAP = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SPLITS = st.lists(st.integers(1, 24), min_size=1, max_size=6)


@st.composite
def rotary(draw: st.DrawFn) -> dict[str, Any]:
    theta = draw(st.sampled_from([1e3, 1e4, 1e6]))
    if draw(st.booleans()):
        return {"rope_type": "default", "rope_theta": theta}
    factor = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": factor}


@st.composite
def lfm3_shapes(draw: st.DrawFn) -> dict[str, Any]:
    kinds = st.sampled_from(["conv", "full_attention", "sliding_attention"])
    pattern = draw(st.lists(kinds, min_size=1, max_size=5))
    kv_heads = draw(st.sampled_from([1, 2]))
    return {
        "layer_types": pattern,
        "num_hidden_layers": len(pattern),
        "sliding_window": draw(st.integers(2, 32)),
        "conv_L_cache": draw(st.integers(2, 8)),
        "conv_bias": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "use_attention_gate": draw(st.booleans()),
        "use_sandwich_norm": draw(st.booleans()),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 2, 4])),
        "head_dim": draw(st.sampled_from([8, 16])),
        "rope_parameters": {"full_attention": draw(rotary()), "sliding_attention": draw(rotary())},
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def moe_shapes(draw: st.DrawFn) -> dict[str, Any]:
    pattern = draw(st.lists(st.sampled_from(["conv", "full_attention"]), min_size=1, max_size=4))
    experts = draw(st.integers(1, 8))
    return {
        "layer_types": pattern,
        "num_hidden_layers": len(pattern),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "num_dense_layers": draw(st.integers(0, len(pattern))),
        "use_expert_bias": draw(st.booleans()),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "conv_L_cache": draw(st.integers(2, 8)),
    }


def check_any_split(theirs: Any, ours: Decoder, splits: list[int], pad: int, data: st.DataObject) -> None:
    """Rows of different lengths, padded, call by call; after the last call each equals transformers, fed whole."""
    lengths = data.draw(st.lists(st.tuples(*[st.integers(1, n) for n in splits]), min_size=1, max_size=3))
    batch = len(lengths)
    tokens = torch.randint(0, ours.config.vocab_size, (batch, sum(splits)))
    state = empty_state(ours.config, window=sum(splits), batch=batch)
    position = torch.zeros(batch, dtype=torch.long)
    with torch.inference_mode():
        for step, size in enumerate(splits):
            valid = torch.tensor([row[step] for row in lengths])
            chunk = torch.zeros((batch, size + pad), dtype=torch.long)
            for row, start in enumerate(position.tolist()):
                chunk[row, : valid[row]] = tokens[row, start : start + int(valid[row])]
            logits = feed(ours, state, chunk, position, valid)
            position = position + valid
        for row in range(batch):
            expected = theirs(tokens[row : row + 1, : int(position[row])], use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[row], expected, atol=TOLERANCE, rtol=0)


@CHEAP
@given(shape=lfm3_shapes(), splits=SPLITS, pad=st.integers(0, 5), data=st.data())
def test_any_lfm3_any_split_any_padding_equals_transformers(shape, splits, pad, data):
    check_any_split(*make_lfm3_pair(**shape), splits, pad, data)


@CHEAP
@given(shape=moe_shapes(), splits=SPLITS, pad=st.integers(0, 5), data=st.data())
def test_any_lfm2_moe_any_split_any_padding_equals_transformers(shape, splits, pad, data):
    check_any_split(*make_moe_pair(**shape), splits, pad, data)


@pytest.mark.parametrize("make", [make_lfm3_pair, make_moe_pair])
def test_token_by_token_equals_transformers_with_its_own_cache(make):
    """Ten times as far as the sliding window reaches."""
    theirs, ours = make()
    tokens = torch.randint(0, 320, (1, 60))
    cache, state = None, empty_state(ours.config, 60)
    with torch.inference_mode():
        for at in range(60):
            step = theirs(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            logits = feed(ours, state, tokens[:, at : at + 1], torch.tensor([at]), None)
            torch.testing.assert_close(logits, step.logits[:, -1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("make", [make_lfm3_pair, make_moe_pair])
@pytest.mark.parametrize("as_held", [False, True], ids=["as saved", "as held in memory"])
def test_what_transformers_saved_is_read_and_equals_it_on_every_token(make, as_held, tmp_path: Path):
    theirs, _ = make()
    theirs.save_pretrained(tmp_path)
    if as_held:  # experts in one tensor, another name for the gate
        held = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
        save_file(held, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    assert from_dict(to_dict(checkpoint.config), "manifest.json") == checkpoint.config
    ours = load_decoder(checkpoint)
    tokens = torch.randint(0, 320, (2, 40))
    with torch.inference_mode():
        logits, _ = ours(tokens, torch.zeros(2, dtype=torch.long), None, empty_state(ours.config, 40, 2), True)
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("make", [make_lfm3_pair, make_moe_pair])
def test_the_steps_of_the_trace_compute_what_the_model_does(make):
    _, ours = make()
    tokens, position, length = torch.randint(0, 320, (2, 9)), torch.tensor([3, 0]), torch.tensor([9, 4])
    state: dict[str, Tensor] = {
        name: torch.randn(shape) for name, shape in state_shapes(ours.config, 12, batch=2).items()
    }
    network = trace(ours.config, padded=True)
    given = {TOKENS: tokens, POSITION: position, LENGTH: length} | {STATE + name: t for name, t in state.items()}
    found = interpret(network, ours, given, network.results)
    logits, new = ours(tokens, position, length, state)
    torch.testing.assert_close(found[network.logits], logits, atol=0, rtol=0)
    for name, value in network.state.items():
        torch.testing.assert_close(found[value], new[name], atol=0, rtol=0)


def test_the_resident_form_equals_the_explicit_one_and_forgets_at_position_zero():
    _, ours = make_lfm3_pair()
    check_resident(ours, 32, [1, 2, 12, 1, 14])


def test_the_state_of_a_sliding_layer_does_not_grow_with_the_window():
    _, ours = make_lfm3_pair(sliding_window=6, conv_L_cache=7)
    short, long = (state_shapes(ours.config, window) for window in (64, 32_768))
    assert {name for name, shape in long.items() if shape != short[name]} == {"key.2", "value.2"}
    assert long["sliding_key.4"] == (1, 2 * 16, 5)


def test_lfm3_1_7b_keeps_only_its_six_full_layers_for_a_context_of_32768():
    short, long = (state_shapes(SIZES["lfm3-1.7b"], window) for window in (1024, 32_768))
    grown = {name: shape for name, shape in long.items() if shape != short[name]}
    assert grown.keys() == {f"{part}.{layer}" for layer in range(2, 24, 4) for part in ("key", "value")}
    assert set(grown.values()) == {(1, 4, 32_768, 128)}
    assert len([name for name in long if name.startswith("sliding_")]) == 2 * 5
