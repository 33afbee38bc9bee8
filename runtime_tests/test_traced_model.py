"""The first rungs of the ladder: blocks and the whole traced model equal transformers' in fp32, however fed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import make_pair
from torch import Tensor

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.resident import Resident
from lfm2_export.model.state import State, empty_state, state_shapes, write_slices

TOLERANCE = 1e-4


@st.composite
def shapes(draw: st.DrawFn) -> dict:
    """Any LFM2 the contract allows: conv width, bias, layer pattern, GQA ratio, untied head."""
    pattern = draw(st.lists(st.sampled_from(["conv", "full_attention"]), min_size=1, max_size=5))
    kv_heads = draw(st.sampled_from([1, 2]))
    return {
        "conv_L_cache": draw(st.integers(2, 7)),
        "conv_bias": draw(st.booleans()),
        "layer_types": pattern,
        "num_hidden_layers": len(pattern),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 2, 4])),
        "tie_word_embeddings": draw(st.booleans()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "vocab_size": 64,
    }


def feed(model: Decoder, state: State, chunk: Tensor, position: Tensor, length: Tensor | None) -> Tensor:
    logits, new = model(chunk, position, length, state)
    valid = torch.full((len(chunk),), chunk.shape[1]) if length is None else length
    write_slices(state, new, position, valid)
    return logits


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=shapes(), splits=st.lists(st.integers(1, 6), min_size=1, max_size=8), pad=st.integers(0, 5), data=st.data()
)
def test_any_shape_any_split_any_padding_equals_transformers(shape, splits, pad, data):
    theirs, ours = make_pair(**shape)
    lengths = data.draw(st.lists(st.tuples(*[st.integers(1, n) for n in splits]), min_size=1, max_size=3))
    batch = len(lengths)
    tokens = torch.randint(0, ours.config.vocab_size, (batch, sum(splits)))
    with torch.inference_mode():
        state = empty_state(ours.config, window=sum(splits), batch=batch)
        position = torch.zeros(batch, dtype=torch.long)
        for step, size in enumerate(splits):
            valid = torch.tensor([row[step] for row in lengths])
            chunk = torch.zeros((batch, size + pad), dtype=torch.long)
            for row in range(batch):
                start = int(position[row])
                chunk[row, : valid[row]] = tokens[row, start : start + int(valid[row])]
            logits = feed(ours, state, chunk, position, valid)
            position = position + valid
        for row in range(batch):
            expected = theirs(tokens[row : row + 1, : int(position[row])], use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[row], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_whole_prefill_equals_transformers_on_every_token(batch):
    theirs, ours = make_pair()
    tokens = torch.randint(0, 320, (batch, 40))
    with torch.inference_mode():
        state = empty_state(ours.config, 40, batch)
        logits, _ = ours(tokens, torch.zeros(batch, dtype=torch.long), None, state, all_logits=True)
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_each_block_equals_transformers(layer):
    theirs, ours = make_pair()
    tokens = torch.randint(0, 320, (1, 12))
    seen: dict[str, Tensor] = {}
    theirs.model.layers[layer].register_forward_hook(lambda m, i, o: seen.__setitem__("theirs", o))
    following = ours.layers[layer + 1].operator_norm  # its input is the block's output
    following.register_forward_hook(lambda m, i, o: seen.__setitem__("ours", i[0]))
    with torch.inference_mode():
        theirs(tokens)
        ours(tokens, torch.zeros(1, dtype=torch.long), None, empty_state(ours.config, 12))
    torch.testing.assert_close(seen["ours"], seen["theirs"], atol=1e-5, rtol=0)


def test_token_by_token_equals_transformers_with_its_own_cache():
    theirs, ours = make_pair(conv_L_cache=5, conv_bias=True)
    tokens = torch.randint(0, 320, (1, 20))
    cache = None
    state = empty_state(ours.config, 20)
    with torch.inference_mode():
        for at in range(20):
            step = theirs(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            logits = feed(ours, state, tokens[:, at : at + 1], torch.tensor([at]), None)
            torch.testing.assert_close(logits, step.logits[:, -1], atol=TOLERANCE, rtol=0)


def check_resident(ours: Decoder, window: int, sizes: list[int]) -> None:
    """Hold two conversations in buffers, in calls of these sizes, against the explicit form."""
    tokens = torch.randint(0, 320, (1, sum(sizes)))
    resident = Resident(ours, empty_state(ours.config, window))
    with torch.inference_mode():
        for _conversation in range(2):
            state = empty_state(ours.config, window)
            at = 0
            for size in sizes:
                chunk = tokens[:, at : at + size]
                expected = feed(ours, state, chunk, torch.tensor([at]), None)
                torch.testing.assert_close(resident(chunk, torch.tensor([at])), expected, atol=1e-6, rtol=0)
                at += size


def test_resident_form_equals_explicit_form_and_forgets_at_position_zero():
    _, ours = make_pair()
    check_resident(ours, 16, [1, 2, 9])


def test_state_shapes_follow_the_contract():
    _, ours = make_pair(conv_L_cache=4)
    names = list(state_shapes(ours.config, 10))
    assert names == [
        "conv_state.0",
        "conv_state.1",
        "key.2",
        "value.2",
        "conv_state.3",
        "key.4",
        "value.4",
        "conv_state.5",
    ]
    assert state_shapes(ours.config, 10)["conv_state.0"] == (1, 64, 3)
    assert state_shapes(ours.config, 10)["key.2"] == (1, 2, 10, 16)


@pytest.mark.parametrize("form", ["explicit", "resident"])
def test_strict_export_with_dynamic_length_equals_eager(form):
    _, ours = make_pair()
    tokens = torch.randint(0, 320, (1, 9))
    dynamic = {1: torch.export.Dim("T", min=1, max=15)}
    zero = torch.tensor([0])
    state = empty_state(ours.config, 16)
    expected = ours(tokens, zero, None, state)[0]
    if form == "resident":
        model, example = Resident(ours, empty_state(ours.config, 16)), (tokens[:, :4], zero)
        program = torch.export.export(model, example, dynamic_shapes=(dynamic, None), strict=True)
        actual = program.module()(tokens, zero)
    else:
        example = (tokens[:, :4], zero, torch.tensor([4]), state)
        spec = (dynamic, None, None, dict.fromkeys(state))
        program = torch.export.export(ours, example, dynamic_shapes=spec, strict=True)
        actual = program.module()(tokens, zero, torch.tensor([9]), state)[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
