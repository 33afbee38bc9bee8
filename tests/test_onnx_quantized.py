"""Quantized ONNX artifacts: equal to their eager model, in onnxruntime's own packing and rounding, stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from decoders import random_decoder, tokens, worst
from onnx_artifacts import FLIP_ERROR, FP32_ERROR, QUANTIZED, lower, model_file, pair, recipe, step_errors, weight_only
from onnxruntime.capi import _pybind_state as kernels
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from lfm2_export.quantize.apply import BlockActivationLinear, install, quantize
from lfm2_export.quantize.grid import grid_of, searched_scales
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.runtimes._float_activations import in_float
from lfm2_export.runtimes.onnxruntime import RUNTIME, OnnxRuntimeSession
from lfm2_export.targets import onnx_graph
from lfm2_export.targets.onnx.weights import linear, pack


class TestQuantized:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("name", QUANTIZED)
    def test_weight_only_is_exact(self, tmp_path: Path, name: str, tied: bool) -> None:
        decoder = random_decoder(tie_word_embeddings=tied, conv_bias=not tied)
        sessions = pair(decoder, tmp_path, recipe(name, float_activations=True))
        assert worst(*sessions, [1, 2, 9, 1, 4]) < FP32_ERROR

    @pytest.mark.parametrize("name", QUANTIZED)
    def test_with_int8_activations_only_rounding_flips_differ(self, tmp_path: Path, name: str) -> None:
        errors = step_errors(*pair(random_decoder(), tmp_path, recipe(name)))
        assert np.median(errors) < FP32_ERROR
        assert max(errors) < FLIP_ERROR

    @pytest.mark.parametrize("limit", [1000, 10**9], ids=["external", "embedded"])
    @pytest.mark.parametrize("name", QUANTIZED)
    def test_the_shipped_file_is_exact_but_for_rounding(
        self, tmp_path: Path, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", limit)
        made = lower(quantize(random_decoder(), recipe(name).quantization), recipe(name), tmp_path)
        unrounded = RUNTIME.weights_session(tmp_path, made)
        assert worst(unrounded, weight_only(name), [1, 2, 9, 1, 4]) < FP32_ERROR

    @pytest.mark.parametrize("name", ["onnx-int8", "onnx-int4-mixed"])
    def test_int8_matrices_turned_to_fp32_once_are_what_the_kernel_makes_of_them_in_every_call(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = lower(quantize(random_decoder(), recipe(name).quantization), recipe(name), tmp_path)
        once = RUNTIME.weights_session(tmp_path, made)
        monkeypatch.setattr(OnnxRuntimeSession, "_turns_int8_in_every_call", False)
        in_every_call = RUNTIME.weights_session(tmp_path, made)
        assert worst(once, in_every_call, [1, 2, 9, 1, 4]) < FP32_ERROR
        path = model_file(tmp_path)
        for turned in (True, False):
            with in_float(path, turned) as file:
                products = [node for node in onnx.load(file).graph.node if node.op_type == "MatMulNBits"]
                bits = {attribute.i for node in products for attribute in node.attribute if attribute.name == "bits"}
            assert (8 in bits) is not turned

    @pytest.mark.parametrize("group", [16, 32, 64, 128])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_int8_activations_round_as_onnxruntime_does(self, tmp_path: Path, bits: int, group: int) -> None:
        """A scaled identity reads the rounded activations back: not one of 65,536 may differ, ties included."""
        size = 256
        scales = torch.ones(size, size // group)
        grid = np.eye(size, dtype=np.int8)
        rng = np.random.default_rng(0)
        gauss = rng.standard_normal((128, size)).astype(np.float32)
        ties = (rng.integers(-254, 255, (128, size)) / 2).astype(np.float32)
        ties[:, ::group] = 127
        x = np.concatenate((gauss, ties, np.zeros((1, size), dtype=np.float32)))
        expected = BlockActivationLinear(torch.eye(size), None, group)(torch.from_numpy(x)).numpy()
        found = matmul_nbits(pack(grid, bits, group), scales.numpy(), bits, group, x, tmp_path / "one.onnx")
        steps = np.repeat(np.abs(x.reshape(len(x), -1, group)).max(-1) / 127, group, axis=1)
        assert np.array_equal(np.rint(found / np.maximum(steps, 1e-9)), np.rint(expected / np.maximum(steps, 1e-9)))

    @pytest.mark.parametrize("group", [16, 32, 64, 128])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_packing_is_onnxruntimes_own(self, bits: int, group: int) -> None:
        """Weights that lie on the quantizer's grid already come out of it as the very bytes that `pack` makes."""
        rows, columns, limit = 24, 256, 2 ** (bits - 1)
        values = np.random.default_rng(0).integers(-limit, limit, (rows, columns)).astype(np.int8)
        values[:, ::group] = -limit  # pins the scale to 1
        packed = np.zeros((rows, columns // group, group * bits // 8), dtype=np.uint8)
        scales = np.zeros(rows * (columns // group), dtype=np.float32)
        zeros = np.zeros(rows * (columns // group) * bits // 8, dtype=np.uint8)
        quantize_blocks = {4: kernels.quantize_matmul_4bits, 8: kernels.quantize_matmul_8bits}[bits]
        transposed = np.ascontiguousarray(values.T.astype(np.float32))
        quantize_blocks(packed, transposed, scales, zeros, group, rows, columns, True)
        assert np.array_equal(scales, np.ones_like(scales))
        assert np.array_equal(pack(values, bits, group), packed)

    @pytest.mark.parametrize("group", [32, 128])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_matrix_that_is_not_square_is_stored_as_onnxruntimes_quantizer_would(
        self, tmp_path: Path, bits: int, group: int
    ) -> None:
        """Its own tool quantizes the MatMul of an fp32 file; with rows and columns swapped the bytes would differ."""
        rows, columns, limit = 24, 256, 2 ** (bits - 1)
        values = torch.randint(-limit, limit, (rows, columns), generator=torch.Generator().manual_seed(0))
        values[:, ::group] = -limit  # pins every scale to what follows
        weight = values * torch.rand(rows, columns // group).repeat_interleave(group, dim=1)
        graphs = {}
        for kind in ("float", "quantized"):
            module = torch.nn.Linear(columns, rows, bias=False)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            if kind == "quantized":
                scheme = WeightScheme(bits=bits, group=group)
                scales = searched_scales(weight, grid_of(scheme), steps=0)
                install(torch.nn.Sequential(module), "0", QuantizationRule(match="*", weight=scheme), weight, scales)
            graph = onnx_graph.Graph(kind)
            graph.output("y", "float32", "n", rows)
            graph.op("Identity", "y", linear(graph, "w", module, graph.input("x", "float32", "n", columns)))
            graph.save(tmp_path / kind)
            graphs[kind] = onnx.load(tmp_path / kind)
        config = DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=True, bits=bits)
        quantizer = MatMulNBitsQuantizer(graphs["float"], algo_config=config)
        quantizer.process()
        nodes, arrays = {}, {}
        for kind, model in (("theirs", quantizer.model.model), ("ours", graphs["quantized"])):
            (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
            stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
            arrays[kind] = [stored[name] for name in node.input[1:3]]
            nodes[kind] = {a.name: a.i for a in node.attribute if a.name in ("N", "K", "bits", "block_size")}
        assert nodes["ours"] == nodes["theirs"] == {"N": rows, "K": columns, "bits": bits, "block_size": group}
        for ours, theirs in zip(arrays["ours"], arrays["theirs"], strict=True):
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-6)

    @pytest.mark.parametrize("name", QUANTIZED)
    def test_plain_and_fused_embedding_give_the_same_bits(self, tmp_path: Path, name: str) -> None:
        logits, kinds = [], []
        for fused in (False, True):
            (folder := tmp_path / str(fused)).mkdir()
            session, _ = pair(random_decoder(), folder, recipe(name, options={"fused_embedding": fused}))
            logits.append(session.prefill(tokens(9)))
            kinds.append({node.op_type for node in onnx.load(model_file(folder)).graph.node})
        assert np.array_equal(*logits)
        assert kinds[1] - kinds[0] == {"GatherBlockQuantized"}

    @pytest.mark.parametrize("name", QUANTIZED)
    def test_tied_head_and_embedding_are_stored_once(self, tmp_path: Path, name: str) -> None:
        sizes = {}
        for tied in (True, False):
            pair(random_decoder(tie_word_embeddings=tied), tmp_path, recipe(name))
            sizes[tied] = model_file(tmp_path).stat().st_size
        bits = recipe(name).quantization[0].weight.bits  # type: ignore[union-attr]
        matrix = 320 * 64 * bits // 8 + 320 * (64 // 32) * 4
        assert 0 <= sizes[False] - sizes[True] - matrix < 512  # names and dimensions of the second copy

    def test_mixed_schemes(self, tmp_path: Path) -> None:
        """fp32 embedding, int8 head in groups of 64, int4 w2, the rest fp32."""
        rules = (
            QuantizationRule(match="head", weight=WeightScheme(bits=8, group=64)),
            QuantizationRule(match="layers.*.w2", weight=WeightScheme(bits=4, group=16, scale="bfloat16")),
        )
        sessions = pair(random_decoder(), tmp_path, recipe(quantization=rules))
        assert worst(*sessions, [1, 2, 9, 1, 4]) < FP32_ERROR


def matmul_nbits(
    packed: np.ndarray, scales: np.ndarray, bits: int, group: int, x: np.ndarray, path: Path
) -> np.ndarray:
    rows, columns = packed.shape[0], x.shape[1]
    graph = onnx_graph.Graph("one")
    graph.input("x", "float32", "n", columns)
    graph.output("y", "float32", "n", rows)
    graph.weight("w", np.uint8, packed.shape, lambda: packed)
    graph.weight("s", np.float32, scales.shape, lambda: scales)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": group, "accuracy_level": 4}
    graph.op("MatMulNBits", "y", "x", "w", "s", domain="com.microsoft", **attributes)
    graph.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])
