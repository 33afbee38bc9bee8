"""What the ONNX targets make of the trace: fewer, larger steps, which compute the same bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from decoders import SHAPES, random_decoder
from eager_steps import compute

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import Network, Step
from lfm2_export.graph.trace import trace
from lfm2_export.graph.walk import probes
from lfm2_export.model.state import empty_state
from lfm2_export.targets.onnx.passes import mixers_products_together, rotated_in_attention, summed_in_norms
from lfm2_export.targets.onnx.target import TARGET
from lfm2_export.targets.onnx_qnn.target import TARGET as NPU

WINDOW = 16


def traced(config: LFM2Config) -> Network:
    return trace(config, padded=True)


@pytest.mark.parametrize("network_of", [traced, TARGET.network, NPU.network], ids=["trace", "onnx", "onnx_qnn"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_a_network_computes_what_the_decoder_does(
    shape: dict[str, object], network_of: Callable[[LFM2Config], Network]
) -> None:
    decoder = random_decoder(**shape)
    network = network_of(decoder.config)
    tokens, position, length = torch.randint(0, 320, (2, 5)), torch.tensor([3, 7]), torch.tensor([5, 2])
    state = {name: torch.randn_like(tensor) for name, tensor in empty_state(decoder.config, WINDOW, 2).items()}
    expected, expected_state = decoder(tokens, position, length, state)
    found, found_state = compute(network, decoder, tokens, position, length, state)
    assert torch.equal(found, expected)
    assert list(found_state) == list(expected_state)
    assert all(torch.equal(found_state[name], tensor) for name, tensor in expected_state.items())


def test_every_sum_and_rotation_is_inside_a_larger_step_and_a_mixers_products_are_one() -> None:
    config = random_decoder().config
    kinds = Counter(step.kind for step in TARGET.network(config).steps)
    layers, attentions = config.num_hidden_layers, config.layer_types.count("full_attention")
    assert kinds["add_norm"] == 2 * layers  # all but the first norm, and the final one
    assert kinds["rms_norm"] == 1
    assert kinds["linears"] == layers
    assert kinds["rotary_attention"] == attentions
    assert not {"add", "attention", "rotate"} & kinds.keys()


def test_a_rotated_key_is_the_npus_new_state() -> None:
    network = NPU.network(random_decoder().config)
    assert not {"rotate", "head_norm", "attention"} & network.kinds().keys()
    makers = {name: network.maker(network.state[name]) for name in ("key.2", "value.2")}
    assert {name: step.kind for name, step in makers.items() if step is not None} == {
        "key.2": "rotated_heads",
        "value.2": "attention_of_heads",
    }


def test_products_are_stacked_as_the_model_declares_them() -> None:
    joint = [step.arguments for step in TARGET.network(random_decoder().config).of_kind("linears")]
    assert joint[0] == tuple(f"layers.0.conv.{name}_proj" for name in ("b", "c", "x"))  # used as b, x, c
    assert joint[2] == tuple(f"layers.2.self_attn.{name}_proj" for name in ("q", "k", "v"))


def test_a_sum_that_is_read_before_its_norm_stays() -> None:
    steps = (
        Step("add", "", ("x", "y"), ("sum",)),
        Step("silu", "", ("sum",), ("early",)),
        Step("rms_norm", "norm", ("sum",), ("normed",)),
        Step("mul", "", ("early", "normed"), ("out",)),
    )
    network = Network(steps, "out", {})
    assert summed_in_norms(network) == network
    without = network._replace(steps=(steps[0], *steps[2:]))
    assert [step.kind for step in summed_in_norms(without).steps] == ["add_norm", "mul"]


def test_a_rotated_key_that_something_else_reads_is_rotated_by_itself() -> None:
    network = trace(random_decoder().config, padded=True)
    attention = next(network.of_kind("attention"))
    reader = Step("silu", "", (attention.inputs[1],), ("reader",))
    watched = network._replace(steps=(*network.steps, reader))
    kinds = Counter(step.kind for step in rotated_in_attention(watched).steps)
    assert (kinds["attention"], kinds["rotary_attention"], kinds["rotate"]) == (1, 1, 2)


def test_products_outside_a_mixer_stay_apart() -> None:
    network = trace(random_decoder().config, padded=True)
    modules = [name for name, _ in random_decoder().named_modules()]
    apart = [step.path for step in mixers_products_together(network, modules).of_kind("linear")]
    assert [path for path in apart if path.startswith("layers.0.")] == [
        *("layers.0.conv.out_proj", "layers.0.feed_forward.w1", "layers.0.feed_forward.w3", "layers.0.feed_forward.w2")
    ]


def test_the_probes_are_every_module_with_weights() -> None:
    decoder = random_decoder()
    leaves = {path for path, module in decoder.named_modules() if not any(module.children())}
    found = {(probe.path, probe.side) for probe in probes(trace(decoder.config, padded=True).steps)}
    assert found == {(path, side) for path in leaves for side in ("in", "out")} - {("embed_tokens", "in")}
