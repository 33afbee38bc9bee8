"""Weights chosen with their inputs in view: exact smoothing, GPTQ on every grid, records, going on after a stop."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from decoders import config, random_decoder, tokens
from torch import Tensor

from lfm2_export import recipes
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import ArtifactError, RecipeError
from lfm2_export.evaluate.teacher_forcing import loss_of, score
from lfm2_export.evaluate.text import evaluation_text
from lfm2_export.graph.matrices import Siblings, matrices, siblings
from lfm2_export.graph.steps import Network, Step, layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.quantize import calibrated
from lfm2_export.quantize.apply import load_quantized, quantized_weight
from lfm2_export.quantize.calibrated import load_calibrated
from lfm2_export.quantize.calibration import Calibration, calibration_sequences
from lfm2_export.quantize.gptq import undrifted
from lfm2_export.quantize.grid import Grid, grid_of, nearest, searched_scales
from lfm2_export.quantize.method import CALIBRATED
from lfm2_export.quantize.moments import Moments, second_moment
from lfm2_export.quantize.record import load_recorded, read_record, write_record
from lfm2_export.quantize.scheme import Rules, WeightScheme
from lfm2_export.quantize.smoothing import absorber_of, smooth
from lfm2_export.quantize.streams import Stream
from lfm2_export.quantize.unpack import unpack
from lfm2_export.runtimes.eager import EagerSession

WINDOWS = tuple(tuple(tokens(length, seed)) for seed, length in enumerate((24, 9, 17)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    init_checkpoint(config(), folder)
    return open_checkpoint(str(folder))


def rules(name: str = "xnnpack-int4") -> Rules:
    return recipes.load(name).quantization


def windows_for(checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(token % checkpoint.config.vocab_size for token in window) for window in WINDOWS)


class TestSmoothing:
    @pytest.mark.parametrize(
        "shape",
        [{}, {"conv_bias": True, "conv_L_cache": 5}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}],
        ids=["plain", "conv with bias", "one KV head", "no sharing of KV heads"],
    )
    def test_it_leaves_the_model_as_it_was(self, shape: dict[str, object]) -> None:
        decoder = random_decoder(**shape)
        with torch.no_grad():  # inputs of very different size, as trained models have
            for layer in range(len(decoder.layers)):
                decoder.block(layer).operator_norm.weight[::7] *= 30
                decoder.block(layer).ffn_norm.weight[::5] *= 30
        smoothed = copy.deepcopy(decoder)
        stream, changed = Stream(smoothed, WINDOWS), 0
        with torch.no_grad():
            for layer in range(len(smoothed.layers)):
                block = smoothed.block(layer)
                before = {name: tensor.clone() for name, tensor in block.named_parameters()}
                grids = {each.path: grid_of(WeightScheme(bits=4, group=32)) for each in matrices(smoothed.config)}
                smooth(
                    smoothed,
                    layer,
                    {path: grid for path, grid in grids.items() if layer_of(path) == layer},
                    lambda path, layer=layer: second_moment(stream.inputs(smoothed, layer, path)),
                )
                changed += sum(not torch.equal(tensor, before[name]) for name, tensor in block.named_parameters())
                stream.advance(smoothed, layer)
        assert changed > 4 * len(smoothed.layers)
        ids = tokens(30, 9)
        expected, found = (EagerSession(each, 32).score(ids) for each in (decoder, smoothed))
        assert abs(found - expected).max() < 2e-5 * abs(expected).max()

    def test_where_a_scaling_goes_is_read_off_the_trace(self) -> None:
        network, found = trace(config(), padded=False), {}
        for layer in range(config().num_hidden_layers):
            for group in siblings(config(), layer):
                absorber = absorber_of(network, group, layer)
                assert absorber is not None
                paths = " ".join(path.removeprefix(f"layers.{layer}.") for path in group.paths)
                at = absorber.step.path.removeprefix(f"layers.{layer}.")
                found[paths] = (absorber.step.kind, at, absorber.attention is not None)
        assert found == {
            "conv.b_proj conv.x_proj conv.c_proj": ("rms_norm", "operator_norm", False),
            "conv.out_proj": ("short_conv", "conv", False),
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj": ("rms_norm", "operator_norm", False),
            "self_attn.out_proj": ("linear", "self_attn.v_proj", True),
            "feed_forward.w1 feed_forward.w3": ("rms_norm", "ffn_norm", False),
            "feed_forward.w2": ("linear", "feed_forward.w3", False),
        }

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([], None),
            ([Step("silu", "", ("a",), ("x",))], None),
            ([Step("linear", "layers.0.a", ("b",), ("x",))], "layers.0.a"),
            ([Step("linear", "layers.0.a", ("b",), ("x",)), Step("silu", "", ("x",), ("y",))], None),
            ([Step("linear", "layers.0.a", ("b",), ("x",)), Step("linear", "layers.1.b", ("x",), ("y",))], None),
            ([Step("rms_norm", "norm", ("b",), ("x",))], None),
            ([Step("linear", "layers.0.a", ("b",), ("v",)), Step("mul", "", ("v", "v"), ("x",))], None),
            ([Step("linear", "layers.0.a", ("b",), ("v",)), Step("mul", "", ("v", "w"), ("x",))], "layers.0.a"),
        ],
        ids=[
            *("comes in", "no parameters", "a matrix", "read elsewhere", "read by another layer", "of another layer"),
            *("a square", "a product"),
        ],
    )
    def test_what_cannot_absorb_a_scaling_is_left_alone(self, steps: list[Step], expected: str | None) -> None:
        group = Siblings("x", ("layers.0.p", "layers.0.q"))
        readers = [Step("linear", path, ("x",), (path,)) for path in group.paths]
        found = absorber_of(Network((*steps, *readers), "layers.0.q", {}), group, 0)
        assert (found and found.step.path) == expected


class TestGrid:
    @pytest.mark.parametrize(
        ("bits", "group", "scale"), [(4, 32, "bfloat16"), (4, 64, "float16"), (8, None, "float32")]
    )
    def test_searched_scales_can_be_stored_and_err_less(self, bits: int, group: int | None, scale: str) -> None:
        weight = torch.randn(12, 128, generator=torch.Generator().manual_seed(1))
        weight[:, ::40] *= 5
        grid = grid_of(WeightScheme.model_validate({"bits": bits, "group": group, "scale": scale}))
        full, best = (searched_scales(weight, grid, steps) for steps in (0, 40))
        assert torch.equal(grid.storable(best), best)
        errors = [(nearest(weight, scales, grid) - weight).square().sum() for scales in (full, best)]
        assert errors[1] < errors[0] if bits == 4 else errors[1] == errors[0]  # 8 bits are enough for such outliers

    def test_a_drift_of_the_inputs_is_made_up_for(self) -> None:
        generator = torch.Generator().manual_seed(2)
        exact = torch.randn(500, 24, generator=generator)
        drifted = exact + 0.3 * torch.randn(500, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
        weight = torch.randn(8, 24, generator=generator)
        mended = undrifted(weight, Moments(drifted.T @ drifted, exact.T @ drifted))

        def error(matrix: Tensor) -> float:
            return float((drifted @ matrix.T - exact @ weight.T).norm())

        assert error(mended) < 0.7 * error(weight)
        same = undrifted(weight, Moments(exact.T @ exact, exact.T @ exact))
        torch.testing.assert_close(same, weight, rtol=1e-5, atol=1e-5)


class TestWalk:
    @pytest.mark.parametrize("method", CALIBRATED)
    def test_the_record_rebuilds_the_same_model(self, method: str, tiny: Checkpoint, tmp_path: Path) -> None:
        made, record = load_calibrated(tiny, rules(), "bfloat16", method, windows_for(tiny))  # type: ignore[arg-type]
        write_record(tmp_path / "quantized.safetensors", record)
        again = load_recorded(tiny, rules(), "bfloat16", read_record(tmp_path / "quantized.safetensors"))
        assert_same(made, again)

    def test_the_same_again(self, tiny: Checkpoint) -> None:
        runs = [load_calibrated(tiny, rules(), "float32", "awq-gptq", windows_for(tiny))[1] for _ in range(2)]
        assert runs[0].keys() == runs[1].keys()
        assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())

    def test_a_stopped_run_goes_on_where_it_was(
        self, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, _ = load_calibrated(tiny, rules(), "float32", "awq-gptq", windows_for(tiny))
        last = len(tiny.config.layer_types)

        def stop(announced: str) -> None:
            if f"layer {last} of {last} by" in announced:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load_calibrated(tiny, rules(), "float32", "awq-gptq", windows_for(tiny), stop, tmp_path)
        placed: list[tuple[int, ...]] = []
        place = calibrated.place
        monkeypatch.setattr(
            calibrated, "place", lambda weight, *rest: (placed.append(tuple(weight.shape)), place(weight, *rest))[1]
        )
        resumed, _ = load_calibrated(tiny, rules(), "float32", "awq-gptq", windows_for(tiny), kept=tmp_path)
        assert len(placed) == 7  # the last layer's matrices alone
        assert_same(whole, resumed)

    def test_a_damaged_layer_that_was_kept_is_quantized_again(self, tiny: Checkpoint, tmp_path: Path) -> None:
        whole, _ = load_calibrated(tiny, rules(), "float32", "gptq", windows_for(tiny), kept=tmp_path)
        kept = sorted(tmp_path.glob("layers.*.safetensors"))
        kept[0].write_bytes(kept[0].read_bytes()[:-10])
        kept[1].write_bytes(b"")
        again, _ = load_calibrated(tiny, rules(), "float32", "gptq", windows_for(tiny), kept=tmp_path)
        assert_same(whole, again)
        read_record(kept[0])

    def test_a_shared_embedding_stays_shared(self, tiny: Checkpoint) -> None:
        made, record = load_calibrated(tiny, rules(), "float32", "gptq", windows_for(tiny))
        table, head = quantized_weight(made.embed_tokens), quantized_weight(made.lm_head)
        assert table is not None
        assert head is not None
        assert torch.equal(table.values, head.values)
        assert torch.equal(table.scales, head.scales)
        assert "lm_head.values" not in record

    def test_another_models_record_is_refused(self, tiny: Checkpoint, nano: Checkpoint) -> None:
        _, record = load_calibrated(tiny, rules(), "float32", "awq", windows_for(tiny))
        with pytest.raises(ArtifactError, match="embed_tokens: missing, or not the"):
            load_recorded(nano, rules(), "float32", record)
        with pytest.raises(ArtifactError, match="missing, or not the"):
            load_recorded(
                tiny, rules(), "float32", {k: t for k, t in record.items() if k != "layers.1.feed_forward.w2.scales"}
            )


@pytest.mark.parametrize("recipe", ["xnnpack-int4", "onnx-int4"])
def test_an_artifact_is_proven_by_the_integers_it_holds(
    recipe: str, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.json").write_text(json.dumps(windows_for(tiny)))
    changes = ["weights=awq-gptq", "window=64", f"calibration={{source: tokens, file: {tmp_path / 'text.json'}}}"]
    changes += ["calibration.tokens=32"]
    artifact, report = export(str(tiny.folder), recipe, tmp_path / "made", overrides=changes)
    assert report is not None
    assert report.passed
    assert next(gate.value for gate in report.gates if gate.name == "lowering: weights alone") < 1e-5
    proof = {name for name, entry in artifact.manifest.files.items() if entry.for_proof}
    assert proof == {"quantized.safetensors", "calibration.json"}
    total = sum(entry.size for entry in artifact.manifest.files.values())
    assert artifact.manifest.shipped_bytes < total - (artifact.folder / "quantized.safetensors").stat().st_size
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert report.cache is not None
    assert report.cache.window_bytes == 64 * report.cache.bytes_per_token


def assert_same(one: Decoder, other: Decoder) -> None:
    ids = [token % one.config.vocab_size for token in tokens(20, 5)]
    first, second = (EagerSession(each, 32).score(ids) for each in (one, other))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("xnnpack-fp32", "weights=gptq", "no rule has integer weights"),
        ("xnnpack-int4", "weights=guess", "weights"),
        ("onnx-qnn-16a8w", "weights=gptq", "weights: gptq; the onnx_qnn target has nearest"),
        ("onnx-int4", "calibration={windows: 4}", "calibration is for int16"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(recipe: str, change: str, message: str, nano: Checkpoint) -> None:
    from lfm2_export import targets

    def check() -> None:
        chosen = recipes.load(recipe, [change])
        chosen.check(nano.config)
        targets.find(chosen.target).check(chosen, nano.config)

    with pytest.raises(RecipeError, match=message):
        check()


def test_calibration_text_is_not_evaluation_text(nano: Checkpoint) -> None:
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    seen = set(calibration_sequences(Calibration(windows=128), nano, tokenizer))
    assert seen.isdisjoint(evaluation_text(nano.config, tokenizer, 1024, 50_000).sequences)


@pytest.mark.parametrize(("recipe", "limit"), [("xnnpack-int4", 0.4), ("onnx-int4", 0.4), ("xnnpack-int4-mixed", 0.4)])
def test_gptq_loses_much_less_than_rounding_to_nearest(recipe: str, limit: float, nano: Checkpoint) -> None:
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    sequences = calibration_sequences(Calibration(windows=64), nano, tokenizer)
    text = evaluation_text(nano.config, tokenizer, 1024, 3000)
    made_by = recipes.load(recipe)
    plain = load_quantized(nano, made_by.quantization, made_by.cache)
    chosen, _ = load_calibrated(nano, made_by.quantization, made_by.cache, "gptq", sequences)
    expected = score(load_decoder(nano), text.sequences)
    before, after = (loss_of(score(unpack(each), text.sequences), expected, text.sequences) for each in (plain, chosen))
    assert after.mean_kld < limit * before.mean_kld  # 0.27, 0.26 and 0.17 over 8000 tokens
    assert after.top1 > before.top1


def test_the_grid_is_the_targets_own() -> None:
    grid: Grid = grid_of(WeightScheme(bits=4, group=32, scale="bfloat16"))
    assert (grid.lowest, grid.highest) == (-8, 7)
