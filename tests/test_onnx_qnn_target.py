"""The onnx_qnn target without an NPU: static graphs on the CPU, what is refused, what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from decoders import LFM3_SHAPES, SHAPES, config, random_decoder, worst
from eager_artifacts import artifact_of

from lfm2_export import pipeline, recipes
from lfm2_export.artifact.manifest import MethodSpec
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.qualcomm import soc
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.calibration import Calibration
from lfm2_export.runtimes._slices import SliceSession, graph_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.static_calls import graph_inputs, static_state
from lfm2_export.targets.onnx_qnn.activation_ranges import activation_ranges
from lfm2_export.targets.onnx_qnn.float_graph import build
from lfm2_export.targets.onnx_qnn.methods import make_methods
from lfm2_export.targets.onnx_qnn.qdq import hiding, quantized, with_mask
from lfm2_export.targets.onnx_qnn.shared_weights import save_sharing
from lfm2_export.targets.onnx_qnn.stored_weights import as_stored, wrong_weights
from lfm2_export.targets.onnx_qnn.table import TABLE
from lfm2_export.targets.onnx_qnn.target import TARGET

WINDOW, CHUNK = 40, 8
CHUNKS = [8, 3, 1, 1, 11, 2, 1]


def on_cpu(decoder: Decoder, folder: Path) -> SliceSession:
    """The float graphs, run by onnxruntime's CPU provider."""
    rows = {"decode": 1, "prefill": CHUNK}
    for name, count in rows.items():
        build(decoder, count, WINDOW, 1e4).graph.save(folder / f"{name}.onnx")
    methods = [MethodSpec(name=n, file=f"{n}.onnx", inputs=[], outputs=[], max_tokens=r) for n, r in rows.items()]
    manifest = artifact_of(decoder.config, WINDOW, target="onnx_qnn", methods=methods).manifest
    cpu = ["CPUExecutionProvider"]
    sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=cpu) for name in rows}
    return SliceSession(graph_call(sessions, manifest), manifest, "cpu", "")


@pytest.mark.parametrize("shape", (SHAPES | LFM3_SHAPES).values(), ids=SHAPES | LFM3_SHAPES)
def test_static_graphs_of_every_shape_equal_eager(shape, tmp_path):
    decoder = random_decoder(**shape)
    session, eager = on_cpu(decoder, tmp_path), EagerSession(decoder, WINDOW)
    assert worst(session, eager, CHUNKS) < 1e-5
    assert worst(session, eager, CHUNKS, pad=CHUNK) < 1e-5
    assert worst(session, eager, [WINDOW]) < 1e-5


def recipe(name: str, *changes: str) -> recipes.Recipe:
    return recipes.load(name, ["window=64", *changes])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["form=resident"], "form: resident; .* has explicit"),
        (["cache=bfloat16"], "cache: float32"),
        (["options.soc=SM1"], "options.soc is SM1; expected one of .*SM8650"),
        (["options.prefill_chunk=1"], "prefill_chunk"),
        (["options.prefill_chunk=65"], "prefill_chunk"),
        (["options.context_binary=3"], "one of false, true"),
        (["options.colour=red"], "unknown options"),
        (["quantization.1.weight.group=32"], "in groups of 32, .* has for a product: int8 per row"),
        (["quantization.0.weight.bits=8"], "for an embedding: int16"),
        (["quantization.1.weight.bits=16"], "int16 per row, .* for a product: int8 per row, .*int4 per row"),
        (["quantization.1.match=head"], r"float32 \(no rule fits it\); .* for a product: int8 per row"),
        (["quantization.1.activation=int8-token"], "int8-token; with int16 activations throughout"),
        (["calibration.observer=mse"], "min-max or percentile"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_npu_cannot_do_is_refused_before_a_weight_is_read(changes, message):
    with pytest.raises(RecipeError, match=message) as caught:
        TARGET.check(recipe("onnx-qnn-16a8w", *changes), config())
    assert "\n" not in str(caught.value)


def test_a_model_too_large_for_the_quantizer_is_refused_but_not_in_fp16():
    large = config(vocab_size=200_000, hidden_size=2048)
    with pytest.raises(RecipeError, match="use onnx-qnn-fp16"):
        TARGET.check(recipe("onnx-qnn-16a8w"), large)
    TARGET.check(recipe("onnx-qnn-fp16"), large)


@pytest.mark.parametrize("kind", ["short_conv", "attention_of_heads", "silu"])
def test_a_step_without_an_entry_is_refused_by_name_before_a_weight_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.delitem(TABLE, kind)
    monkeypatch.setattr(pipeline, "load_quantized", pytest.fail)
    with pytest.raises(RecipeError, match=rf"the onnx_qnn target cannot write the step '{kind}' \(at layers\.\d"):
        pipeline.export("nano", "onnx-qnn-fp16", tmp_path / "out")


def test_angles_that_the_caller_does_not_make_are_refused(monkeypatch):
    network = TARGET.network(config())
    turned = {step: step._replace(arguments=(16, 1e4)) for step in network.of_kind("rotary")}
    other = network._replace(steps=tuple(turned.get(step, step) for step in network.steps))
    monkeypatch.setattr(TARGET, "network", lambda _: other)
    with pytest.raises(RecipeError, match="RoPE's factors"):
        TARGET.check(recipe("onnx-qnn-fp16"), config())


def test_every_soc_has_its_number():
    assert soc.named("SM8650").number == 57  # Qualcomm's own table
    assert all(chip.number > 0 for chip in soc.every())


def integer_graph(decoder: Decoder, folder: Path, name: str, observer: str = "min-max") -> tuple[onnx.ModelProto, Any]:
    """The QDQ prefill graph of a recipe, and the ranges it was made from."""
    rules = recipe(name).quantization
    prefill = build(decoder, CHUNK, WINDOW, 1e4)
    prefill.graph.save(folder / "float.onnx")
    sequences = tuple(tuple(1 + (7 * i + 3 * j) % 300 for i in range(20)) for j in range(3))
    calibration = Calibration(observer=observer, percentile=99.0)
    ranges = activation_ranges(prefill, folder / "float.onnx", decoder.config, CHUNK, WINDOW, sequences, calibration)
    hide = hiding(ranges, prefill.scores)
    build(decoder, CHUNK, WINDOW, hide).graph.save(folder / "hidden.onnx")
    known = with_mask(ranges, hide, prefill.scores)
    return quantized(onnx.load(folder / "hidden.onnx"), known, decoder.config, rules), ranges


@pytest.mark.parametrize("name", ["onnx-qnn-16a8w", "onnx-qnn-16a4w"])
def test_integer_weights_are_symmetric_per_output_and_nearest(name, tmp_path):
    decoder = random_decoder()
    model, _ = integer_graph(decoder, tmp_path, name)
    assert wrong_weights(decoder, model) == 0
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = "layers.0.feed_forward.w1.weight"
    assert stored[f"{weight}_scale"].dims == [160]
    assert not onnx.numpy_helper.to_array(stored[f"{weight}_zero_point"]).astype(np.float32).any()
    scale = stored[f"{weight}_scale"]
    values = onnx.numpy_helper.to_array(scale).copy()
    values[3] *= 1.1
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    assert wrong_weights(decoder, model) == pytest.approx(1 / 37, abs=0.01)  # one of all matrices


@pytest.mark.parametrize("name", ["onnx-qnn-16a8w", "onnx-qnn-16a4w"])
def test_the_rounded_decoder_has_the_very_weights_that_are_stored(name, tmp_path):
    decoder = random_decoder(tie_word_embeddings=False)
    model, _ = integer_graph(decoder, tmp_path, name)
    rounded = as_stored(decoder, recipe(name).quantization)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for path, kind, _ in matrices(decoder.config):
        ours, exact = (each.get_parameter(f"{path}.weight").detach().numpy() for each in (rounded, decoder))
        if kind == "embedding":
            assert np.array_equal(ours, exact)
            continue
        parts = (stored[f"{path}.weight_{part}"] for part in ("quantized", "scale"))
        integers, scale = (onnx.numpy_helper.to_array(part).astype(np.float32) for part in parts)
        np.testing.assert_allclose(ours, (integers * scale).T, rtol=1e-6, atol=0)
        assert not np.array_equal(ours, exact)


@pytest.mark.parametrize("name", ["onnx-qnn-16a8w", "onnx-qnn-fp16"])
def test_probes_change_nothing_of_the_graphs_they_watch(name, tmp_path):
    """Integers, scales and operators are the same, and so are the bits of logits and state."""
    chosen, ids = recipe(name), (5, 6, 7, 8, 9, 10, 11)
    sequences = (tuple(range(1, 21)), tuple(range(300, 280, -1))) if chosen.calibration is not None else ()
    decoder = quantize(random_decoder(), chosen.quantization)
    made, run = [], []
    for probed in (False, True):
        found = make_methods(
            decoder, chosen, {"decode": 1, "prefill": CHUNK}, tmp_path, lambda _: None, sequences, probed
        )
        made.append(found["prefill"])
        inputs = static_state(decoder.config, 64) | graph_inputs(decoder.config, ids, 0, CHUNK, 64)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        cpu = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(made[-1].model.SerializeToString(), options, providers=cpu)
        names = [spec.name for spec in made[-1].outputs]
        assert [output.name for output in session.get_outputs()] == names
        arrays = session.run(names, {key: tensor.numpy() for key, tensor in inputs.items()})
        assert [list(array.shape) for array in arrays] == [spec.shape for spec in made[-1].outputs]
        run.append(dict(zip(names, arrays, strict=True)))
    plain, watched = (method.model.graph for method in made)
    assert list(plain.node) == [node for node in watched.node if not node.name.startswith("probe:")]
    assert sorted(map(str, plain.initializer)) == sorted(map(str, watched.initializer))
    probes = run[1].keys() - run[0].keys()
    leaves = [path for path, module in decoder.named_modules() if not any(module.children())]
    assert probes == {f"probe:{path}:{side}" for path in leaves for side in ("in", "out")} - {"probe:embed_tokens:in"}
    for key, values in run[0].items():
        np.testing.assert_array_equal(values, run[1][key])


def test_half_weights_are_read_back_and_a_tied_one_is_stored_once(tmp_path):
    rules = recipe("onnx-qnn-fp16").quantization
    decoder = quantize(random_decoder(), rules)
    build(decoder, 1, WINDOW, 1e4).graph.save(tmp_path / "decode.onnx")
    model = onnx.load(tmp_path / "decode.onnx")
    assert wrong_weights(decoder, model) == 0
    assert not any(tensor.name.startswith("lm_head") for tensor in model.graph.initializer)
    assert wrong_weights(quantize(random_decoder(seed=1), rules), model) == 1


def test_a_state_keeps_its_integer_on_the_way_through(tmp_path):
    _, ranges = integer_graph(random_decoder(), tmp_path, "onnx-qnn-16a8w")
    assert ranges["key.2"] == ranges["new_key.2"]
    assert ranges["conv_state.0"] == ranges["new_conv_state.0"]


def test_a_percentile_cuts_what_min_max_keeps(tmp_path):
    _, wide = integer_graph(random_decoder(), tmp_path, "onnx-qnn-16a8w")
    _, narrow = integer_graph(random_decoder(), tmp_path, "onnx-qnn-16a8w", "percentile")
    name = "layers.0.feed_forward/mul"
    assert narrow[name][1] < wide[name][1]


def test_equal_weights_of_two_models_are_stored_once(tmp_path):
    decoder = random_decoder()
    models = {}
    for rows in (1, CHUNK):
        build(decoder, rows, WINDOW, 1e4).graph.save(tmp_path / "one.onnx")
        models[f"rows{rows}.onnx"] = onnx.load(tmp_path / "one.onnx")
    single = (tmp_path / "one.onnx").stat().st_size
    (tmp_path / "out").mkdir()
    save_sharing(models, tmp_path / "out", "weights.bin")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 1.5 * single
    for name in models:
        onnxruntime.InferenceSession(tmp_path / "out" / name, providers=["CPUExecutionProvider"])
