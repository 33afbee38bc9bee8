"""Artifacts broken on purpose: the gates must catch each of them, or they protect nobody."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from artifacts import ARTIFACTS, WINDOW, open_session

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact, open_artifact, seal, write_manifest
from lfm2_export.errors import ArtifactError, GateError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.laws import LawContext, OtherForm, state_laws
from lfm2_export.parity.prove import prove
from lfm2_export.pipeline import export
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Snapshot

QUICK = Effort(quality_tokens=100, questions=4, prompts=1, continuation=4)
EXPLICIT = [pair for pair in ARTIFACTS if pair[1] == "explicit"]
INT8 = [pair for pair in EXPLICIT if pair[0].endswith("int8")]
FP32 = [pair for pair in EXPLICIT if pair[0].endswith("fp32")]  # no rounding that a wrong state could hide behind


def failed_gates(artifact, checkpoint) -> set[str]:
    report = prove(artifact, checkpoint, effort=QUICK)
    assert not report.passed
    return {gate.name for gate in report.gates if gate.status == "fail"}


@pytest.fixture
def healthy(request, make_artifact) -> Artifact:
    return make_artifact(*request.param)


def resealed(artifact: Artifact, folder) -> Artifact:
    """A copy whose manifest vouches for the damage: only parity can tell."""
    manifest = artifact.manifest.model_copy(update={"files": seal(folder)})
    write_manifest(folder, manifest)
    return open_artifact(folder)


@pytest.mark.parametrize("healthy", INT8, ids="-".join, indirect=True)
def test_flipped_weights_fail_a_lowering_gate(healthy, nano, tmp_path):
    folder = shutil.copytree(healthy.folder, tmp_path / "broken")
    path = folder / healthy.manifest.methods[0].file
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2048] = bytes(byte ^ 0x40 for byte in data[middle : middle + 2048])
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        open_artifact(folder)
    assert failed_gates(resealed(healthy, folder), nano) & {"lowering: max error", "lowering: weights alone"}


class Tampered:
    """A session of the healthy artifact whose state goes wrong in one way."""

    def __init__(self, session, fault: str) -> None:
        self._session, self._fault = session, fault

    def __getattr__(self, name):
        return getattr(self._session, name)

    def reset(self) -> None:
        if self._fault != "stale conv state" or self._session.position == 0:
            self._session.reset()
            return
        stale = {name: t for name, t in self._session.state().tensors.items() if name.startswith("conv_state")}
        self._session.reset()
        empty = self._session.state()
        self._session.restore(replace(empty, tensors={**empty.tensors, **stale}))

    def prefill(self, tokens, pad_to=None):
        logits = self._session.prefill(tokens, pad_to)
        state = self._session.state()
        if self._fault == "swapped states":
            names = [name for name in state.tensors if name.startswith("conv_state")]
            swapped = dict(zip(names, [state.tensors[name] for name in reversed(names)], strict=True))
            self._session.restore(Snapshot(state.position, {**state.tensors, **swapped}))
        elif self._fault == "one position late" and self._session.position < WINDOW - 1:
            keys = {n: np.pad(t, ((0, 0), (0, 0), (1, 0), (0, 0))) for n, t in state.tensors.items() if "conv" not in n}
            self._session.restore(Snapshot(state.position + 1, {**state.tensors, **keys}))
        elif self._fault == "padding kept" and pad_to:
            conv = {n: np.roll(t, -1, -1) for n, t in state.tensors.items() if n.startswith("conv_state")}
            self._session.restore(Snapshot(state.position, {**state.tensors, **conv}))
        elif self._fault == "oldest column lost":  # there is none before the sliding window's end
            late = {
                n: np.pad(t[:, :, 1:], ((0, 0), (0, 0), (1, 0))) for n, t in state.tensors.items() if "sliding" in n
            }
            self._session.restore(Snapshot(state.position, {**state.tensors, **late}))
        return logits

    def decode(self, token):
        return self.prefill([token])


@pytest.mark.parametrize("healthy", FP32, ids="-".join, indirect=True)
@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("stale conv state", "law: reset"),
        ("swapped states", "law: chunked prefill"),
        ("one position late", "law: chunked prefill"),
        ("padding kept", "law: padded prefill"),
    ],
)
def test_a_wrong_state_fails_its_law(healthy, nano, fault, law, monkeypatch):
    if fault == "padding kept" and not open_session(healthy).pads:
        pytest.skip("this runtime pads nothing")
    runtime = runtimes.find("executorch" if healthy.manifest.target == "xnnpack" else "onnxruntime")
    genuine = runtime.open_session

    def opened(folder, manifest):
        """The artifact on trial, tampered with; the other form, which the proof makes to compare with, is sound."""
        session = genuine(folder, manifest)
        return Tampered(session, fault) if manifest.form == healthy.manifest.form else session

    monkeypatch.setattr(runtime, "open_session", opened)
    assert law in failed_gates(healthy, nano)


def test_a_fault_past_a_wide_sliding_window_is_seen(nano, tmp_path, monkeypatch):
    """No case or law is as long as this window, LFM3-1.7B's least of all: they begin where it ends."""
    own = {"conv_L_cache": 7, "sliding_window": 100, "sliding_rope_theta": 1e4, "use_attention_gate": True}
    kinds = ("conv", "sliding_attention", "full_attention")
    init_checkpoint(replace(nano.config, model_type="lfm3", layer_types=kinds, **own), tmp_path / "in")
    artifact, _ = export(str(tmp_path / "in"), "onnx-fp32", tmp_path / "out", overrides=["window=320"], verify=False)
    checkpoint = open_checkpoint(str(tmp_path / "in"))
    assert prove(artifact, checkpoint, effort=QUICK).passed
    genuine = runtimes.find("onnxruntime").open_session
    tampered = lambda *given: Tampered(genuine(*given), "oldest column lost")  # noqa: E731
    monkeypatch.setattr(runtimes.find("onnxruntime"), "open_session", tampered)
    assert failed_gates(artifact, checkpoint) >= {"lowering: max error", "law: chunked prefill"}


class NeverForgets(EagerSession):
    """The bug of the upstream example: the position goes back to 0, the conv state stays."""

    has_state = False

    def reset(self) -> None:
        stale = {name: tensor for name, tensor in getattr(self, "_state", {}).items() if name.startswith("conv_state")}
        super().reset()
        self._state.update(stale)


def test_a_form_that_never_forgets_its_conv_state_fails_the_reset_law(nano, quantized_nano, make_artifact):
    artifact = make_artifact("xnnpack-fp32", "resident")

    def reset_law(session):
        context = LawContext(
            session, nano.config, tuple(range(20, 60)), 1e-4, other_form=OtherForm(None, "not made here")
        )
        return next(iter(state_laws(context)))

    assert reset_law(open_session(artifact)).passed
    assert reset_law(EagerSession(quantized_nano(artifact), WINDOW)).passed
    assert not reset_law(NeverForgets(quantized_nano(artifact), WINDOW)).passed


def test_an_export_whose_gate_fails_leaves_nothing_behind(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(GateError, match="parity failed"):
        export("nano", "onnx-int4", output, overrides=["window=64", "gates.quality.mean_kld=1.0e-9"])
    assert list(tmp_path.iterdir()) == []
