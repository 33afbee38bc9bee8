"""A large model's sessions take turns in memory, and what is proven of it is the same."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity import prove as proving
from lfm2_export.parity.effort import Effort
from lfm2_export.pipeline import export
from lfm2_export.runtimes.genai import GenaiSession
from lfm2_export.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from lfm2_export.runtimes.session import Session

SMALL = Effort(quality_tokens=40, questions=1, prompts=1, continuation=4, law_tokens=24, case_tokens=24, case_steps=20)


def test_only_one_session_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, _ = export("nano", "onnx-int8", tmp_path / "nano", overrides=["window=64"], verify=False)
    checkpoint = open_checkpoint("nano")
    beside = proving.prove(artifact, checkpoint, effort=SMALL)

    alive: weakref.WeakSet[Session] = weakref.WeakSet()
    most: list[int] = []
    for kind in (OnnxRuntimeSession, GenaiSession):
        monkeypatch.setattr(kind, "prefill", _watched(kind.prefill, alive, most))
    monkeypatch.setattr(proving, "_LARGE", 0)
    _watch_weights(monkeypatch)
    in_turns = proving.prove(artifact, checkpoint, effort=SMALL)

    assert {report.runtime for report in in_turns.runtimes} == {"onnxruntime", "genai"}
    assert max(most) == 1
    for ours, theirs in zip(in_turns.runtimes, beside.runtimes, strict=True):
        assert ours.model_dump(exclude={"load_seconds"}) == theirs.model_dump(exclude={"load_seconds"})


def _watch_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session with fp32 matrices is not opened before the model, whose matrices are as large, has gone."""
    made: list[weakref.ref] = []
    quantized, opened = proving._quantized, OnnxRuntime.weights_session

    def remembered(*arguments):
        decoder = quantized(*arguments)
        made.append(weakref.ref(decoder))
        return decoder

    def after_it(self: OnnxRuntime, *arguments):
        assert [each() for each in made] == [None]
        return opened(self, *arguments)

    monkeypatch.setattr(proving, "_quantized", remembered)
    monkeypatch.setattr(OnnxRuntime, "weights_session", after_it)


def _watched(prefill, alive: weakref.WeakSet[Session], most: list[int]):
    def watched(self: Session, *arguments, **named) -> np.ndarray:
        if self not in alive:
            gc.collect()
            alive.add(self)
        most.append(len(alive))
        return prefill(self, *arguments, **named)

    return watched
