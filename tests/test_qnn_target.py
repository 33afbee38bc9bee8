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
from decoders import LFM3, config, random_decoder, relative, state_error, tokens, worst
from qnn_programs import CHUNK, MISSING, WINDOW, WINDOWS, manifest, needs_qnn, recipe
from torch.fx.traceback import NodeSource

from lfm2_export.artifact.manifest import Npu
from lfm2_export.errors import ArtifactError, UsageError, WindowExceededError
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.static_calls import DECODE, PREFILL
from lfm2_export.targets.qnn.compile import shared_origins
from lfm2_export.targets.qnn.target import TARGET
from lfm2_export.targets.static_border import FILE, method_spec


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
