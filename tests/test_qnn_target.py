"""The qnn target and runtime on small random models, compiled and run for real on Qualcomm's HTP emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import LFM3, LFM3_SHAPES, config, random_decoder, relative, state_error, tokens, worst
from qnn_programs import CHUNK, MISSING, WINDOW, WINDOWS, manifest, needs_qnn, recipe, traced_in
from torch.fx.traceback import NodeSource

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Npu
from lfm2_export.errors import (
    ArtifactError,
    LoweringError,
    MissingDependencyError,
    RecipeError,
    UsageError,
    WindowExceededError,
)
from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.steps import layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import state_shapes
from lfm2_export.qualcomm import sdk
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.static_calls import DECODE, MASKED, PREFILL, call_inputs, static_state
from lfm2_export.targets.qnn import target
from lfm2_export.targets.qnn.compile import shared_origins
from lfm2_export.targets.qnn.table import TABLE
from lfm2_export.targets.qnn.target import TARGET
from lfm2_export.targets.static_border import FILE, example, method_spec
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["form=resident"], "form: resident; .* has explicit"),
        (["options.soc=SM9999"], "options.soc is SM9999; expected one of .*SM8650.*SM8750"),
        (["options.prefill_chunk=1"], "prefill_chunk"),
        (["options.prefill_chunk=4096"], "prefill_chunk"),
        (["options.weight_sharing=3"], "expected one of false, true"),
        (["options.shards=0"], "options.shards is 0; expected 1 to 6"),
        (["options.shards=7"], "options.shards is 7"),
        (["options.speed=3"], "unknown options"),
        (["cache=bfloat16"], "cache: bfloat16; .* has cache: float32"),
        (["quantization.1.activation=int8-token"], "int8-token; with int16 activations throughout"),
        (["quantization.0.weight.bits=8"], "embedding"),
        (["quantization.1.weight.group=32"], "in groups of 32, .* for a product: int8 per row, activation: int16$"),
        (["quantization.1.weight={bits: 4, group: 8}"], "int4 per row or in groups of a multiple of 16"),
        (["quantization.1.weight={bits: 4, group: 32}", "options.soc=SM8350"], r"LPBQ\) need HTP v69, SM8350 has v68"),
        (["quantization.1.weight.bits=16", "options.soc=SM8450"], "16-bit weights need HTP v73, SM8450 has v69"),
    ],
)
def test_impossible_recipes_are_refused(changes: list[str], message: str) -> None:
    wanted = recipes.load("qnn-16a8w", [f"window={WINDOW}", "calibration.tokens=32", *changes])
    with pytest.raises(RecipeError, match=message):
        TARGET.check(wanted, config())


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("short_conv", "layers.0.conv"),
        ("attention", "layers.2.self_attn"),
        ("linear", "layers.0.conv.b_proj"),
        ("last_valid", "last_valid"),
    ],
)
def test_a_step_without_an_entry_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, kind: str, where: str) -> None:
    TARGET.check(recipe(), config())
    monkeypatch.delitem(TABLE, kind)
    with pytest.raises(RecipeError, match=rf"the qnn target cannot write the step '{kind}' \(at {where}\)"):
        TARGET.check(recipe(), config())


@needs_qnn
@pytest.mark.parametrize(
    ("name", "soc", "message"),
    [
        ("qnn-fp16", "SM8350", r"SM8350 \(HTP v68\) has no fp16"),
        ("qnn-16a8w", "SM8350", "no products of two 16-bit activations"),
        ("qnn-16a8w", "SM8450", "no products of two 16-bit activations"),
        ("qnn-fp16", "SM8450", None),
        ("qnn-16a8w", "SM8550", None),
    ],
)
def test_a_chip_that_lacks_the_mode_is_refused(name: str, soc: str, message: str | None) -> None:
    if message is None:
        TARGET.check(recipe(name, soc=soc), config())
        return
    with pytest.raises(RecipeError, match=message):
        TARGET.check(recipe(name, soc=soc), config())


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "_package_folder", lambda: None)
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    with pytest.raises(MissingDependencyError, match=r"QNN is not installed: pip install 'lfm2-export\[qnn\]'"):
        TARGET.check(recipe(), config())
    monkeypatch.setenv("QNN_SDK_ROOT", "/nowhere")
    with pytest.raises(MissingDependencyError, match=r"/nowhere/lib/x86_64-linux-clang/libQnnSystem\.so is missing"):
        TARGET.check(recipe(), config())


@needs_qnn
def test_the_backend_starts_and_nothing_is_downloaded() -> None:
    assert sdk.failure() is None
    program = (
        "import socket, sys; from lfm2_export.qualcomm import sdk\n"
        "def refuse(*_): sys.exit('asked the network')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "sdk._start_backend()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "QNN_SDK_ROOT"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, timeout=120)


@needs_qnn
def test_onnxruntime_can_be_imported_after_the_backend_has_run() -> None:
    program = "from lfm2_export.qualcomm import sdk; sdk._start_backend(); import onnxruntime"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)


def test_nodes_share_their_origins_only_while_a_program_is_compiled() -> None:
    node = torch.fx.Graph().placeholder("x")
    node.meta["from_node"] = [NodeSource(None)]
    with shared_origins():
        assert NodeSource(node).from_node[0] is node.meta["from_node"][0]
    assert NodeSource(node).from_node[0] is not node.meta["from_node"][0]


class Made:
    """A compiled tiny model, the eager model it must equal, and both as sessions."""

    def __init__(self, name: str, folder: Path, shape: dict[str, Any] | None = None, **options: Any) -> None:
        self.recipe = recipe(name, **options)
        decoder = random_decoder(**(shape or {"layer_types": ("conv", "full_attention", "conv")}))
        self.decoder = quantize(decoder, self.recipe.quantization, self.recipe.cache)
        TARGET.check(self.recipe, self.decoder.config)
        self.lowered = TARGET.lower(self.decoder, self.recipe, folder, lambda _: None, WINDOWS)
        self.manifest = manifest(self.recipe, self.decoder.config, **self.lowered._asdict())
        self.folder = folder

    def session(self) -> Any:
        from lfm2_export.runtimes.qnn import RUNTIME

        return RUNTIME.open_session(self.folder, self.manifest)

    def reference(self) -> Any:
        methods = TARGET.reference(self.decoder, self.recipe, WINDOWS)
        if methods is None:
            return EagerSession(self.decoder, WINDOW)
        call = pte_call(lambda name, inputs: methods[name](*inputs), self.manifest)
        return SliceSession(call, self.manifest, "eager", "")


@pytest.fixture(scope="module", params=["qnn-fp16", "qnn-16a8w", "qnn-16a4w"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    if MISSING is not None and "CI" not in os.environ:
        pytest.skip(MISSING)
    return Made(request.param, tmp_path_factory.mktemp("qnn"))


@pytest.mark.slow
class TestArtifact:
    def test_everything_is_on_the_npu(self, made: Made) -> None:
        assert {method.name for method in made.lowered.methods} == {DECODE, PREFILL}
        for method in made.lowered.methods:
            assert method.delegation is not None
            assert method.delegation.calls == 1
            assert method.delegation.fallback == {}
            assert method.delegation.delegated > 50

    def test_equals_the_quantized_eager_model(self, made: Made) -> None:
        sessions = made.session(), made.reference()
        assert worst(*sessions, [11, 1, 1, 3, 1]) < 0.02
        assert worst(*sessions, [1, 5, 1], pad=CHUNK) < 0.02

    @pytest.mark.parametrize("made", ["qnn-16a8w"], indirect=True)  # fp16 is cut where weights are stored once, below
    def test_shards_compute_what_the_whole_does(self, made: Made, tmp_path: Path) -> None:
        sharded = Made(made.recipe.name, tmp_path, shards=2)
        for method in sharded.lowered.methods:
            assert method.delegation is not None
            assert (method.delegation.calls, method.delegation.cuts) == (2, 1)
            assert method.delegation.fallback == {}
        assert sharded.manifest.npu is not None
        assert sharded.manifest.npu.shards == 2
        assert worst(sharded.session(), made.session(), [11, 1, 1]) < 1e-3

    def test_prefill_and_decode_agree(self, made: Made) -> None:
        session, ids = made.session(), tokens(9)
        whole = session.prefill(ids)
        state = session.state()
        session.reset()
        for token in ids:
            logits = session.decode(token)
        assert relative(logits, whole) < 0.03
        assert state_error(session.state(), state) < 0.03

    def test_a_state_goes_on_exactly_and_reset_forgets(self, made: Made) -> None:
        session = made.session()
        first = session.prefill(tokens(6))
        saved = session.state()
        onward = [session.decode(token) for token in tokens(3)]
        session.reset()
        np.testing.assert_array_equal(session.prefill(tokens(6)), first)
        other = made.session()
        other.prefill(tokens(7, seed=4))
        other.restore(saved)
        for token, logits in zip(tokens(3), onward, strict=True):
            np.testing.assert_array_equal(other.decode(token), logits)

    def test_a_window_that_the_program_does_not_have_is_refused(self, made: Made) -> None:
        from lfm2_export.runtimes.qnn import RUNTIME

        forged = made.manifest.model_copy(update={"window": 99999})
        with pytest.raises(ArtifactError, match=f"the window is {WINDOW}, the manifest says 99999"):
            RUNTIME.open_session(made.folder, forged)

    def test_the_window_ends(self, made: Made) -> None:
        session = made.session()
        session.prefill(tokens(WINDOW - 1))
        session.decode(1)
        with pytest.raises(WindowExceededError):
            session.decode(1)
        with pytest.raises(UsageError):
            session.prefill([])
        assert session.position == WINDOW


@needs_qnn
@pytest.mark.slow
def test_lfm3_is_on_the_npu_and_equals_its_eager_model_past_its_sliding_window(tmp_path: Path) -> None:
    made = Made("qnn-fp16", tmp_path, LFM3 | {"layer_types": ("sliding_attention", "full_attention")})
    assert [method.delegation.fallback for method in made.lowered.methods if method.delegation] == [{}, {}]
    sessions = made.session(), made.reference()
    assert worst(*sessions, [3, 1, 1, 11, 1]) < 0.02
    assert worst(*sessions, [1, 5, 1], pad=CHUNK) < 0.02
    session = sessions[0]
    session.reset()
    first = session.prefill(tokens(9))
    session.prefill(tokens(14, seed=3))
    session.reset()
    np.testing.assert_array_equal(session.prefill(tokens(9)), first)


@needs_qnn
@pytest.mark.slow
def test_weights_are_stored_once_where_the_chip_can_in_shards_too(tmp_path: Path) -> None:
    decoder = random_decoder(layer_types=("conv", "full_attention"), hidden_size=128, intermediate_size=512)
    wanted = recipe("qnn-fp16", weight_sharing=True, shards=2)
    decoder = quantize(decoder, wanted.quantization, wanted.cache)
    lowered = TARGET.lower(decoder, wanted, tmp_path, lambda _: None)
    assert lowered.npu is not None
    assert (lowered.npu.weights_shared, lowered.npu.emulator_file) == (True, "emulator.pte")
    shared, twin = ((tmp_path / name).stat().st_size for name in ("model.pte", "emulator.pte"))
    assert shared < 0.7 * twin
    from lfm2_export.runtimes.qnn import RUNTIME

    session = RUNTIME.open_session(tmp_path, manifest(wanted, decoder.config, **lowered._asdict()))
    assert worst(session, EagerSession(decoder, WINDOW), [9, 1, 1]) < 0.02


AGAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from decoders import random_decoder
from qnn_programs import recipe
from lfm2_export.quantize.apply import quantize
from lfm2_export.targets.qnn.target import TARGET
wanted = recipe("qnn-fp16")
decoder = quantize(random_decoder(layer_types=("conv",)), wanted.quantization, wanted.cache)
TARGET.lower(decoder, wanted, Path(sys.argv[2]), lambda _: None)
"""


@needs_qnn
@pytest.mark.slow
def test_two_exports_differ_in_a_few_bytes_and_compute_the_same_bits(tmp_path: Path) -> None:
    running, folders = [], [tmp_path / name for name in ("one", "two")]
    for folder in folders:  # a process each, as the command has: QNN also counts what it compiled in a process
        folder.mkdir()
        command = [sys.executable, "-c", AGAIN, str(Path(__file__).parent), str(folder)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    one, two = (np.frombuffer((folder / FILE).read_bytes(), np.uint8) for folder in folders)
    assert len(one) == len(two)
    assert 0 < np.count_nonzero(one != two) < len(one) / 100  # the time at least, or the manifest is too modest
    from lfm2_export.runtimes.qnn import RUNTIME

    wanted, shape = recipe("qnn-fp16"), config(layer_types=("conv",))
    npu = Npu(soc="SM8650", htp=75, weights_shared=False, emulator_file=FILE)
    facts = {"methods": [method_spec(n, r, shape, WINDOW, None) for n, r in ((DECODE, 1), (PREFILL, CHUNK))]}
    facts |= {"transport": "slice", "cache_layout": "heads-time", "versions": {}, "runtime_requirement": "", "npu": npu}
    first, second = (RUNTIME.open_session(folder, manifest(wanted, shape, **facts)) for folder in folders)
    assert worst(first, second, [9, 1]) == 0


@needs_qnn
def test_a_node_outside_the_npu_fails_the_export_and_is_named() -> None:
    from lfm2_export.artifact.manifest import Delegation

    report = {DECODE: Delegation(backend="QNN", calls=2, delegated=9, fallback={"aten.roll": 2})}
    with pytest.raises(LoweringError, match=r"outside the NPU: aten.roll × 2; --allow-fallback"):
        target._refuse_fallback(report, recipe())
    target._refuse_fallback(report, recipe(allow_fallback=True))
