"""Static quantization for the qnn target, as PyTorch computes it before anything is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decoders import random_decoder, tokens
from qnn_programs import CHUNK, WINDOW, WINDOWS, manifest, needs_qnn, recipe, traced_in

from lfm2_export.model.decoder import Decoder
from lfm2_export.parity.leading import GuidedMethods
from lfm2_export.quantize.static_weights import static_weights
from lfm2_export.recipes import Recipe
from lfm2_export.static_calls import DECODE, PREFILL
from lfm2_export.targets.qnn.target import TARGET
from lfm2_export.targets.static_border import example, method_spec, probed_values


def graphs(made_by: Recipe, decoder: Decoder, probed: bool = False) -> Any:
    methods = TARGET.reference(decoder, made_by, WINDOWS, probed)
    assert methods is not None
    return methods


def stored_matrices(graph: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By path, the integers that the program stores, and the matrix that they stand for."""
    found = {}
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            back = node.args[1]
            arguments = [getattr(graph, arg.target) if isinstance(arg, torch.fx.Node) else arg for arg in back.args]
            found[traced_in(node)] = arguments[0], back.target(*arguments, **back.kwargs)
    return found


def activation_steps(graph: Any) -> list[tuple[str, float]]:
    """(what is quantized, step) of every 16-bit tensor in order."""
    quantizers = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return [(str(n.args[0].target), float(n.args[1])) for n in graph.graph.nodes if n.target is quantizers]


@needs_qnn
@pytest.mark.slow
class TestQuantized:
    """What is compiled, still in PyTorch."""

    @pytest.mark.parametrize("group", [None, 32])
    def test_the_weights_are_those_that_gptq_made_in_both_methods(self, group: int | None) -> None:
        decoder = random_decoder(layer_types=("conv", "full_attention"))
        made_by = recipe("qnn-16a4w", {"quantization.2.weight.group": group})
        expected = static_weights(decoder, made_by.quantization, WINDOWS, "gptq")
        for graph in graphs(made_by, decoder).values():
            stored = stored_matrices(graph)
            assert set(stored) == set(expected.scales)
            for path, (integers, matrix) in stored.items():
                assert integers.dtype == torch.int8
                assert integers.abs().max() <= (127 if path == "lm_head" else 7)
                wanted = expected.decoder.get_submodule(path).weight
                torch.testing.assert_close(matrix.float(), wanted, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("observer", ["percentile", "mse"])
    def test_observers_narrow_ranges_and_never_widen_them(self, observer: str) -> None:
        decoder = random_decoder(layer_types=("conv", "full_attention"))
        steps = [
            activation_steps(graphs(recipe("qnn-16a8w", {"calibration.observer": name}), decoder)[PREFILL])
            for name in ("min-max", observer)
        ]
        assert [name for name, _ in steps[0]] == [name for name, _ in steps[1]]
        pairs = [(full, narrow) for (_, full), (_, narrow) in zip(*steps, strict=True)]
        assert all(narrow <= full * 1.0001 for full, narrow in pairs)
        assert observer == "mse" or sum(narrow < full * 0.99 for full, narrow in pairs) > 5

    def test_probes_change_no_scale_and_no_result(self) -> None:
        decoder = random_decoder(layer_types=("conv", "full_attention"))
        points = probed_values(TARGET.network(decoder.config))
        plain, probed = graphs(recipe(), decoder), graphs(recipe(), decoder, probed=True)
        for name, rows in ((DECODE, 1), (PREFILL, CHUNK)):
            assert activation_steps(probed[name]) == activation_steps(plain[name])
            inputs = example(decoder.config, WINDOW, rows)
            expected, found = plain[name](*inputs), probed[name](*inputs)
            assert len(found) == len(expected) + len(points)
            assert all(map(torch.equal, found, expected))

    def test_led_along_other_values_only_what_reads_them_changes(self) -> None:
        decoder = random_decoder(layer_types=("conv", "full_attention"))
        points = probed_values(TARGET.network(decoder.config))
        rows = {DECODE: 1, PREFILL: CHUNK}
        specs = [method_spec(name, count, decoder.config, WINDOW, None, points) for name, count in rows.items()]
        facts = {"methods": specs, "transport": "slice", "cache_layout": "heads-time", "versions": {}}
        made = manifest(recipe(), decoder.config, **facts, runtime_requirement="")
        methods = graphs(recipe(), decoder, probed=True)
        sound, changed = GuidedMethods(methods, made), GuidedMethods(methods, made)
        for count in (CHUNK + 3, CHUNK + 1, 1):  # padded, then a token decoded, then nothing else
            free = sound.free(tokens(count))
            assert set(free) == set(points)
            for point, values in sound.led(tokens(count), free).items():
                np.testing.assert_array_equal(values, free[point])
            read = "layers.1.ffn_norm:out"
            led = changed.led(tokens(count), free | {read: free[read] / 2})
            different = {point for point, values in led.items() if not np.array_equal(values, free[point])}
            assert different == {"layers.1.feed_forward.w1:out", "layers.1.feed_forward.w3:out"}

    def test_the_sigmoid_has_all_16_bits_for_its_0_to_1(self) -> None:
        steps = activation_steps(graphs(recipe(), random_decoder(layer_types=("conv",)))[DECODE])
        assert [step for name, step in steps if "sigmoid" in name] == [pytest.approx(1 / 65536, rel=1e-3)]

    def test_the_first_rule_that_fits_sets_a_matrix_width(self) -> None:
        decoder = random_decoder(layer_types=("conv", "full_attention"))
        base = recipe("qnn-16a8w", {"weights": "mse"})
        rules = [rule.model_dump() for rule in base.quantization]
        rules.insert(0, {"match": "layers.*.feed_forward.w2", "weight": {"bits": 16}, "activation": "int16"})
        made_by = Recipe.model_validate(base.model_dump() | {"quantization": rules})
        TARGET.check(made_by, decoder.config)
        stored = stored_matrices(graphs(made_by, decoder)[PREFILL])
        wide = {path for path, (integers, _) in stored.items() if integers.abs().max() > 127}
        assert wide == {"layers.0.feed_forward.w2", "layers.1.feed_forward.w2"}
