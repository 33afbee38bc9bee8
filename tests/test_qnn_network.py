"""The form of the network that the qnn target compiles is the traced model, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import LFM3_SHAPES, config, random_decoder, worst
from qnn_programs import CHUNK, WINDOW, manifest, recipe, traced_in

from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.steps import layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import state_shapes
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.static_calls import DECODE, MASKED, PREFILL, call_inputs, static_state
from lfm2_export.targets.qnn.table import TABLE
from lfm2_export.targets.static_border import example, method_spec
from lfm2_export.targets.static_module import StaticModule


def eager_pair(decoder: Decoder) -> tuple[SliceSession, EagerSession]:
    """The NPU's network in plain PyTorch, and the traced model."""
    network = trace(decoder.config, padded=True)
    methods = {
        name: StaticModule(TABLE, network, decoder, WINDOW, rows) for name, rows in ((DECODE, 1), (PREFILL, CHUNK))
    }
    specs = [method_spec(n, r, decoder.config, WINDOW, None) for n, r in ((DECODE, 1), (PREFILL, CHUNK))]
    facts = {"methods": specs, "transport": "slice", "cache_layout": "heads-time", "versions": {}}
    made = manifest(recipe(), decoder.config, **facts, runtime_requirement="")
    call = pte_call(lambda name, inputs: methods[name](*inputs), made)
    session = SliceSession(call, made, "eager", "")
    return session, EagerSession(decoder, WINDOW)


class TestNetwork:
    """The NPU's form of the network is the traced model, whatever its shape."""

    @pytest.mark.parametrize(
        "shape",
        [
            {},
            {"conv_L_cache": 2, "conv_bias": True},
            {"conv_L_cache": 5},
            {"tie_word_embeddings": False},
            {"layer_types": ("full_attention", "conv", "full_attention"), "head_dim": 32},
            {"num_key_value_heads": 4},
            {"num_key_value_heads": 1},
            {"layer_types": ("conv", "conv")},
            *LFM3_SHAPES.values(),
        ],
        ids=str,
    )
    def test_equals_the_traced_model(self, shape: dict[str, Any]) -> None:
        sessions = eager_pair(random_decoder(**shape))
        for chunks in ([17], [3, 1, 1, 7, 2, 3], [1] * 9, [1, 16]):
            assert worst(*sessions, chunks) < 1e-5
        assert worst(*sessions, [1, 7, 2, 1], pad=8) < 1e-5

    def test_every_node_names_the_module_it_comes_from(self) -> None:
        """By its weights a recipe's rules find a matrix, by its layer the cut into shards finds its place."""
        shape = config(layer_types=("conv", "full_attention", "conv"))
        module = StaticModule(
            TABLE, trace(shape, padded=True), random_decoder(layer_types=shape.layer_types), WINDOW, CHUNK
        )
        nodes = module.exported(example(shape, WINDOW, CHUNK)).module().graph.nodes
        products = [node for node in nodes if node.target is torch.ops.aten.linear.default]
        assert {str(node.args[1].target) for node in products} == {
            f"{matrix.path}.weight" for matrix in matrices(shape) if matrix.kind != "embedding"
        }
        assert all(f"{traced_in(node)}.weight" == str(node.args[1].target) for node in products)
        layers = [layer_of(traced_in(node)) for node in nodes if node.op == "call_function"]
        inside = [layer for layer in layers if layer is not None]
        assert inside == sorted(inside)
        assert set(inside) == {0, 1, 2}
        for layer in (1, 2):
            first = next(node for node in nodes if node.op == "call_function" and layer_of(traced_in(node)) == layer)
            assert traced_in(first.all_input_nodes[0]) == f"layers.{layer - 1}.add_2"  # the residual sum

    def test_inputs_are_what_the_manifest_says(self) -> None:
        shape = config()
        state = static_state(shape, WINDOW)
        inputs = call_inputs([4, 5, 6], CHUNK, 7, WINDOW, state)
        spec = method_spec(PREFILL, CHUNK, shape, WINDOW, None)
        assert [list(tensor.shape) for tensor in inputs] == [each.shape for each in spec.inputs]
        assert [str(tensor.dtype) for tensor in inputs] == [f"torch.{each.dtype}" for each in spec.inputs]
        assert [each.name for each in spec.inputs][4:] == list(state_shapes(shape, WINDOW))
        mask = inputs[3][0, 0]
        assert (mask[:, :7] == 0).all()
        assert (mask[:, 7:WINDOW] == MASKED).all()
        assert torch.equal(mask[:, WINDOW:] == 0, torch.ones(CHUNK, CHUNK).tril().bool())
