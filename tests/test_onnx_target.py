"""The ONNX target against eager PyTorch: numbers, state laws, packing, determinism, and faults that must be seen."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from decoders import CHUNKS, SHAPES, config, random_decoder, relative, state_error, tokens, worst
from onnx_artifacts import FP32_ERROR, HALF, HALF_ERROR, QUANTIZED, WINDOW, lower, model_file, pair, recipe, weight_only
from packaging.version import Version

from lfm2_export import pipeline
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import ArtifactError, RecipeError, UsageError, WindowExceededError
from lfm2_export.model.state import empty_state, write_slices
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import RUNTIME
from lfm2_export.runtimes.session import Snapshot
from lfm2_export.targets import onnx_graph
from lfm2_export.targets.onnx.table import TABLE
from lfm2_export.targets.onnx.target import TARGET

CONVOLUTIONS = ("plain", "fused", "channels_last")


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


def batch_feeds(shape: LFM2Config, ids: np.ndarray, positions: list[int], lengths: list[int]) -> dict[str, np.ndarray]:
    """A call's inputs as genai sends them, with empty states of `WINDOW` columns."""
    rows, count = ids.shape
    total = max(positions) + count
    mask = np.zeros((rows, total), dtype=np.int64)
    for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
        mask[row, : position + length] = 1
    feeds = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.array(positions)[:, None] + np.arange(count)[None],
    }
    for name, tensor in empty_state(shape, WINDOW, rows).items():
        kind, layer = name.split(".")
        if kind == "conv_state":  # one column more than needed: garbage there must not matter
            garbage = np.full((*tensor.shape[:2], 1), np.nan, dtype=np.float32)
            feeds[f"past_conv.{layer}"] = np.concatenate((garbage, tensor.numpy()), axis=2)
        else:
            feeds[f"past_key_values.{layer}.{kind}"] = tensor.numpy()
    return feeds


class TestBatch:
    """Straight through InferenceSession: rows of different lengths, then decoding at different positions."""

    @pytest.mark.parametrize("width", [2, 3, 5])
    def test_rows_of_different_lengths(self, tmp_path: Path, width: int) -> None:
        decoder = random_decoder(conv_L_cache=width)
        session, _ = pair(decoder, tmp_path)
        outputs = [spec.name for spec in lower(decoder, recipe(), tmp_path).methods[0].outputs]
        lengths, positions = [3, 8, 1], [0, 0, 0]
        ids = np.array([tokens(8, seed) for seed in range(3)])
        state = empty_state(decoder.config, WINDOW, 3)
        feeds = batch_feeds(decoder.config, ids, positions, lengths)
        for _ in range(4):
            found = dict(zip(outputs, session._session.run(outputs, feeds), strict=True))
            position, length = torch.tensor(positions), torch.tensor(lengths)
            with torch.no_grad():
                logits, new = decoder(torch.from_numpy(ids), position, length, state)
            write_slices(state, new, position, length)
            assert relative(found["logits"][:, 0], logits.numpy()) < FP32_ERROR
            for row, filled in enumerate((position + length).tolist()):
                for name, tensor in state.items():
                    kind, layer = name.split(".")
                    if kind == "conv_state":
                        columns = found[f"present_conv.{layer}"][row, :, 1:]
                        assert relative(columns, tensor[row].numpy()) < FP32_ERROR
                    else:
                        columns = found[f"present.{layer}.{kind}"][row, :, :filled]
                        assert relative(columns, tensor[row, :, :filled].numpy()) < FP32_ERROR
            positions = (position + length).tolist()
            lengths, ids = [1, 1, 1], np.array([[5], [6], [7]])
            feeds = batch_feeds(decoder.config, ids, positions, lengths)
            for name, tensor in found.items():
                if name.startswith("present"):
                    past = name.replace("present_conv", "past_conv").replace("present.", "past_key_values.")
                    feeds[past] = tensor

    def test_growing_cache(self, tmp_path: Path) -> None:
        """transformers.js shares no buffer: an empty past at first, then what the last call returned."""
        decoder = random_decoder()
        session, eager = pair(decoder, tmp_path)
        outputs = [spec.name for spec in lower(decoder, recipe(), tmp_path).methods[0].outputs]
        past: dict[str, np.ndarray] = {}
        for chunk in (tokens(5), [3], tokens(4), [9]):
            feeds = batch_feeds(decoder.config, np.array([chunk]), [eager.position], [len(chunk)])
            feeds = {n: t[:, :, :0] if n.startswith("past_key") else t for n, t in feeds.items()} | past
            found = dict(zip(outputs, session._session.run(outputs, feeds), strict=True))
            assert relative(found["logits"][0, 0], eager.prefill(chunk)) < FP32_ERROR
            renamed = {n.replace("present_conv", "past_conv").replace("present.", "past_key_values."): n for n in found}
            past = {new: found[old] for new, old in renamed.items() if old != "logits"}
            assert past["past_key_values.2.key"].shape[2] == eager.position


@pytest.fixture
def norm_schemas() -> Iterator[None]:
    """Tell onnx's checker of the operator that onnxruntime keeps in the default domain, types inferred included.

    The others are in a domain of their own, which the checker leaves to its owner.
    """
    schema = onnx.defs.OpSchema
    name, one = "SimplifiedLayerNormalization", schema.FormalParameter
    kinds = {"axis": schema.AttrType.INT, "epsilon": schema.AttrType.FLOAT, "stash_type": schema.AttrType.INT}
    onnx.defs.register_schema(
        schema(
            name,
            "",
            1,
            inputs=[one("x", "T"), one("gamma", "T")],
            outputs=[one("y", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
            attributes=[schema.Attribute(attribute, kind) for attribute, kind in kinds.items()],
        )
    )
    yield
    onnx.defs.deregister_schema(name, 1, "")


class TestFile:
    @pytest.mark.parametrize("name", ["onnx-fp32", *QUANTIZED])
    def test_same_bytes_twice(self, tmp_path: Path, name: str) -> None:
        digests = set()
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            pair(random_decoder(), folder, recipe(name))
            digests.add(hashlib.sha256(model_file(folder).read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_large_weights_go_to_a_file_of_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
        sessions = pair(random_decoder(), tmp_path, recipe("onnx-int4", float_activations=True))
        names = sorted(path.name for path in (tmp_path / "onnx").iterdir())
        assert names == ["model_q4.onnx", "model_q4.onnx_data"]
        assert worst(*sessions, [5, 1]) < FP32_ERROR

    def test_weights_past_a_browsers_buffer_are_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
        monkeypatch.setattr(onnx_graph, "CHUNK_BYTES", 200_000)
        (tmp_path / "config.json").write_text('{"model_type": "lfm2"}')
        sessions = pair(random_decoder(), tmp_path)
        data = [path for path in (tmp_path / "onnx").iterdir() if "_data" in path.name]
        config = json.loads((tmp_path / "config.json").read_bytes())
        assert config["model_type"] == "lfm2"
        count = config["transformers.js_config"]["use_external_data_format"]["model.onnx"]
        assert count > 2
        assert {path.name for path in data} == {f"model.onnx_data{f'_{n}' if n else ''}" for n in range(count)}
        assert max(path.stat().st_size for path in data) <= 200_000
        assert worst(*sessions, [5, 1]) < FP32_ERROR

    @pytest.mark.parametrize("conv", CONVOLUTIONS)
    @pytest.mark.parametrize("name", ["onnx-fp32", *QUANTIZED, *HALF])
    def test_passes_the_checker_with_full_shape_inference(
        self, tmp_path: Path, name: str, conv: str, norm_schemas: None
    ) -> None:
        chosen = recipe(name)
        pair(random_decoder(conv_bias=True), tmp_path, recipe(name, options=chosen.options | {"conv": conv}))
        onnx.checker.check_model(str(model_file(tmp_path)), full_check=True)

    def test_border_is_what_genai_and_transformers_js_look_for(self, tmp_path: Path) -> None:
        method = lower(random_decoder(), recipe(), tmp_path).methods[0]
        inputs = {spec.name: (spec.dtype, spec.shape) for spec in method.inputs}
        outputs = {spec.name: (spec.dtype, spec.shape) for spec in method.outputs}
        assert inputs["input_ids"] == ("int64", ["batch_size", "sequence_length"])
        assert inputs["attention_mask"] == ("int64", ["batch_size", "total_sequence_length"])
        assert inputs["position_ids"] == ("int64", ["batch_size", "sequence_length"])
        assert inputs["past_conv.0"] == ("float32", ["batch_size", 64, 3])
        assert outputs["present_conv.0"] == ("float32", ["batch_size", 64, "conv_columns"])  # 3, unless asked for more
        assert inputs["past_key_values.2.key"] == ("float32", ["batch_size", 2, "past_sequence_length", 16])
        assert outputs["present.4.value"] == ("float32", ["batch_size", 2, "present_sequence_length", 16])
        assert outputs["logits"] == ("float32", ["batch_size", 1, 320])
        session = onnxruntime.InferenceSession(model_file(tmp_path), providers=["CPUExecutionProvider"])
        assert [spec.name for spec in session.get_inputs()] == list(inputs)
        assert [spec.name for spec in session.get_outputs()] == list(outputs)
        optional = {spec.name for spec in session.get_overridable_initializers()}
        assert optional == {"num_logits_to_keep", "num_states_to_keep"}


@pytest.mark.parametrize(
    ("name", "options", "oldest"),
    [
        ("onnx-fp32", {"conv": "plain"}, "1.20.1"),
        ("onnx-fp16", {"conv": "plain", "precision": "float16"}, "1.20.1"),
        ("onnx-int4", {"conv": "plain"}, "1.20.1"),
        ("onnx-int8", {"conv": "plain"}, "1.22.0"),
        ("onnx-q4f16", {"conv": "plain", "precision": "float16", "fused_embedding": True}, "1.23.0"),
        ("onnx-fp32", {"conv": "fused"}, "1.25.1"),
        ("onnx-fp32", {}, "1.30.0"),
    ],
)
def test_the_oldest_runtime_is_stated(tmp_path: Path, name: str, options: dict[str, str], oldest: str) -> None:
    chosen = recipe(name, options=options)
    made = TARGET.lower(quantize(random_decoder(), chosen.quantization, chosen.cache), chosen, tmp_path, lambda _: None)
    assert made.runtime_requirement == f"onnxruntime>={oldest}"
    assert Version(onnxruntime.__version__) >= Version(oldest)
    assert onnxruntime.InferenceSession(model_file(tmp_path), providers=["CPUExecutionProvider"]).get_outputs()


class TestFaults:
    @pytest.mark.parametrize("name", QUANTIZED)
    def test_a_flipped_weight_is_seen(self, tmp_path: Path, name: str) -> None:
        made = lower(quantize(random_decoder(), recipe(name).quantization), recipe(name), tmp_path)
        eager = weight_only(name)
        path = model_file(tmp_path)
        model = onnx.load(path)
        weight = next(t for t in model.graph.initializer if t.name.startswith("layers.1.feed_forward.w1.weight_q"))
        weight.raw_data = bytes([weight.raw_data[0] ^ 0x88]) + weight.raw_data[1:]
        onnx.save(model, path)
        broken = RUNTIME.weights_session(tmp_path, made)
        assert worst(broken, eager, [8]) > 10 * FP32_ERROR

    def test_a_broken_file_is_one_line(self, tmp_path: Path) -> None:
        made = lower(random_decoder(), recipe(), tmp_path)
        path = model_file(tmp_path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ArtifactError, match="cannot load") as caught:
            RUNTIME.open_session(tmp_path, made)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "shape", "message"),
        [
            ({"form": "resident"}, {}, "form: resident; the onnx target has explicit"),
            ({"options": {"opset": 21}}, {}, "unknown options.*opset"),
            ({"options": {"fused_embedding": 1}}, {}, "false, true"),
            ({"options": {"conv": "slow"}}, {}, "channels_last, fused, plain"),
            (
                {"options": {"precision": "float16"}},
                {},
                "options.precision: float16 the onnx target has cache: float16",
            ),
            (
                {"options": {"precision": "float16"}, "cache": "float16"},
                {},
                r"embed_tokens: float32 \(no rule fits it\); with options.precision: float16 .* fp16 \(bits: 16\)",
            ),
            ({"quantization": (("linear", 16, None, None),)}, {}, "needs options.precision: float16"),
            ({}, {"head_dim": 8}, "multiple of 16"),
            ({"cache": "bfloat16"}, {}, "cache: bfloat16; .* has cache: float32 or float16"),
            ({"quantization": (("linear", 4, 32, "int8-token"),)}, {}, "int8-block"),
            (
                {"quantization": (("embedding", 4, 32, "int8-block"),)},
                {},
                "embed_tokens: .*int8-block; .* for an embedding: int4 in groups [^:]*$",
            ),
            ({"quantization": (("linear", 8, None, None),)}, {}, "int8 in groups of 16, 32, 64, …"),
            ({"quantization": (("conv", 8, 8, None),)}, {}, "int8 in groups of 16, 32, 64, …"),
            (
                {"quantization": (("conv", 8, 48, None),)},
                {"hidden_size": 96},
                "int8 in groups of 48, .* int8 in groups of 16, 32, 64, …",
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, str) else "",
    )
    def test_impossible_recipes_are_refused(self, changes: dict[str, Any], shape: dict[str, Any], message: str) -> None:
        if "quantization" in changes:
            rules = (
                QuantizationRule(match=m, weight=WeightScheme(bits=b, group=g), activation=a)
                for m, b, g, a in changes["quantization"]
            )
            changes = changes | {"quantization": tuple(rules)}
        with pytest.raises(RecipeError, match=message):
            TARGET.check(recipe(**changes), config(**shape))

    @pytest.mark.parametrize("kind", ["short_conv", "rotary_attention", "silu"])
    def test_a_step_without_an_entry_is_refused_by_name_before_a_weight_is_read(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(TABLE, kind)
        monkeypatch.setattr(pipeline, "load_quantized", pytest.fail)
        with pytest.raises(RecipeError, match=rf"the onnx target cannot write the step '{kind}' \(at layers\.\d"):
            pipeline.export("nano", "onnx-fp32", tmp_path / "out")
