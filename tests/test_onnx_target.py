"""The ONNX target against eager PyTorch: numbers in fp32 and fp16, and the state laws."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from decoders import CHUNKS, SHAPES, random_decoder, relative, state_error, tokens, worst
from onnx_artifacts import (
    CONVOLUTIONS,
    FP32_ERROR,
    HALF,
    HALF_ERROR,
    WINDOW,
    batch_feeds,
    lower,
    model_file,
    pair,
    recipe,
)

from lfm2_export.errors import UsageError, WindowExceededError
from lfm2_export.model.state import empty_state
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import RUNTIME
from lfm2_export.runtimes.session import Snapshot


class TestFloat:
    @pytest.mark.parametrize("chunks", CHUNKS, ids=str)
    def test_equals_eager_for_any_split(self, tmp_path: Path, chunks: list[int]) -> None:
        assert worst(*pair(random_decoder(), tmp_path), chunks) < FP32_ERROR

    def test_padding_stops_at_the_window(self, tmp_path: Path) -> None:
        sessions = pair(random_decoder(), tmp_path)
        assert worst(*sessions, [WINDOW - 2, 1, 1], pad=16) < FP32_ERROR

    @pytest.mark.parametrize("conv", CONVOLUTIONS)
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    def test_any_convolution_equals_eager(self, tmp_path: Path, shape: dict[str, Any], conv: str) -> None:
        sessions = pair(random_decoder(**shape), tmp_path, recipe(options={"conv": conv}))
        assert worst(*sessions, [1, 7, 2, 1, 8], pad=8) < FP32_ERROR
        fused = conv != "plain" and bool(sessions[1].decoder.config.conv_layers)
        assert ("CausalConvWithState" in {node.op_type for node in onnx.load(model_file(tmp_path)).graph.node}) == fused

    def test_all_logits_on_request(self, tmp_path: Path) -> None:
        decoder = random_decoder()
        session, _ = pair(decoder, tmp_path)
        ids = torch.tensor([tokens(9)])
        with torch.no_grad():
            expected, _ = decoder(ids, torch.tensor([0]), None, empty_state(decoder.config, 1), all_logits=True)
        for keep, first in ((0, 0), (1, 8), (4, 5), (30, 0)):
            feeds = batch_feeds(decoder.config, ids.numpy(), [0], [9]) | {"num_logits_to_keep": np.array(keep)}
            logits = session._session.run(["logits"], feeds)[0]
            assert relative(logits, expected[:, first:].numpy()) < FP32_ERROR


class TestHalf:
    """fp16 graphs. This CPU computes part of them in fp32, so the figures are fp16's rounding, not equality."""

    @pytest.mark.parametrize("name", HALF)
    @pytest.mark.parametrize("chunks", CHUNKS, ids=str)
    def test_equals_eager_but_for_fp16_rounding(self, tmp_path: Path, name: str, chunks: list[int]) -> None:
        assert worst(*pair(random_decoder(conv_bias=True), tmp_path, recipe(name)), chunks) < HALF_ERROR

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("name", HALF)
    def test_the_stored_weights_are_exact(self, tmp_path: Path, name: str, tied: bool) -> None:
        shape: dict[str, Any] = {"tie_word_embeddings": tied, "conv_bias": True}
        made_by = recipe(name)
        quantized = quantize(random_decoder(**shape), made_by.quantization, made_by.cache)
        wide = RUNTIME.weights_session(tmp_path, lower(quantized, made_by, tmp_path))
        rules = recipe(name, float_activations=True).quantization
        assert worst(wide, EagerSession(quantize(random_decoder(**shape), rules), WINDOW), [1, 2, 9, 1, 4]) < FP32_ERROR

    def test_everything_that_is_large_is_stored_in_half(self, tmp_path: Path) -> None:
        made = lower(
            quantize(random_decoder(), recipe("onnx-fp16").quantization, "float16"), recipe("onnx-fp16"), tmp_path
        )
        weights = onnx.load(model_file(tmp_path)).graph.initializer
        assert {t.data_type for t in weights if len(t.dims) == 2 and "rotary" not in t.name} == {
            onnx.TensorProto.FLOAT16
        }
        states = {spec.dtype for spec in made.methods[0].inputs if spec.name.startswith("past_")}
        assert states == {"float16"}
        assert made.methods[0].outputs[0].dtype == "float32"  # logits

    def test_a_narrow_cache_alone(self, tmp_path: Path) -> None:
        sessions = pair(random_decoder(), tmp_path, recipe(cache="float16"))
        assert worst(*sessions, [1, 7, 2, 1, 8]) < HALF_ERROR
        cache = sessions[0]._buffers["past_key_values.2.key"]
        assert (cache.dtype, sessions[0]._buffers["past_conv.0"].dtype) == (np.float16, np.float32)


class TestLaws:
    def test_reset_is_bit_for_bit_a_new_conversation(self, tmp_path: Path) -> None:
        session, _ = pair(random_decoder(), tmp_path)
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        assert session.position == 0
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_snapshot_goes_on_exactly_here_and_elsewhere(self, tmp_path: Path) -> None:
        session, _ = pair(random_decoder(), tmp_path)
        session.prefill(tokens(6))
        snapshot = session.state()
        onward = [session.decode(token) for token in tokens(5)]
        (tmp_path / "other").mkdir()
        other, _ = pair(random_decoder(), tmp_path / "other")
        other.prefill(tokens(30, seed=8))
        for resumed in (session, other):
            resumed.restore(snapshot)
            assert state_error(resumed.state(), snapshot) == 0
            assert all(np.array_equal(a, resumed.decode(t)) for a, t in zip(onward, tokens(5), strict=True))

    def test_state_is_a_copy(self, tmp_path: Path) -> None:
        session, _ = pair(random_decoder(), tmp_path)
        session.prefill(tokens(6))
        snapshot = session.state()
        kept = copy.deepcopy(snapshot)
        session.prefill(tokens(6))
        assert state_error(snapshot, kept) == 0

    def test_eager_and_artifact_exchange_states(self, tmp_path: Path) -> None:
        session, eager = pair(random_decoder(), tmp_path)
        eager.prefill(tokens(9))
        session.restore(eager.state())
        assert relative(session.decode(5), eager.decode(5)) < FP32_ERROR

    def test_a_foreign_snapshot_changes_nothing(self, tmp_path: Path) -> None:
        session, _ = pair(random_decoder(), tmp_path)
        session.prefill(tokens(6))
        before = session.state()
        wider = EagerSession(random_decoder(), 2 * WINDOW)
        wider.prefill(tokens(WINDOW + 1))
        for foreign in (wider.state(), Snapshot(6, {}), EagerSession(random_decoder(conv_L_cache=5), WINDOW).state()):
            with pytest.raises(UsageError):
                session.restore(foreign)
        assert state_error(session.state(), before) == 0

    def test_window_edge(self, tmp_path: Path) -> None:
        session, eager = pair(random_decoder(), tmp_path)
        assert worst(session, eager, [WINDOW - 1, 1]) < FP32_ERROR
        before = session.state()
        with pytest.raises(WindowExceededError):
            session.decode(1)
        assert state_error(session.state(), before) == 0
        session.reset()
        with pytest.raises(WindowExceededError):
            session.prefill(tokens(WINDOW + 1))
        assert session.position == 0

    @pytest.mark.parametrize("chunk", [[], [320], [-1]], ids=str)
    def test_bad_chunk_is_refused(self, tmp_path: Path, chunk: list[int]) -> None:
        session, _ = pair(random_decoder(), tmp_path)
        with pytest.raises(UsageError):
            session.prefill(chunk)
        assert session.position == 0
