"""Runtimes as classes: each is described by its own file without its library, and a new one is one more file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import code_of

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.pipeline import export

# onnxruntime without any of our care: no buffers bound, the whole state in and out with each call
TOY = """
import numpy as np
import onnxruntime

from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session, check_room


class Plain(Runtime):
    name = "plain-ort"
    targets = ("onnx",)

    def version(self):
        return onnxruntime.__version__

    def open_session(self, folder, manifest, threads=None):
        return PlainSession(folder, manifest)


RUNTIME = Plain()


class PlainSession(Session):
    runtime = "plain-ort"
    has_state = False
    version = onnxruntime.__version__

    def __init__(self, folder, manifest):
        method = manifest.methods[0]
        self.window = manifest.window
        self._vocab = manifest.source.config["vocab_size"]
        self._session = onnxruntime.InferenceSession(folder / method.file, providers=["CPUExecutionProvider"])
        self._state_inputs = [spec for spec in method.inputs if spec.name.startswith("past_")]
        self.reset()

    @property
    def position(self):
        return self._position

    def reset(self):
        self._position = 0
        sizes = {"batch_size": 1, "past_sequence_length": 0}
        shapes = {spec.name: [sizes.get(size, size) for size in spec.shape] for spec in self._state_inputs}
        self._state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def prefill(self, tokens, pad_to=None):
        check_room(self._position, len(tokens), self.window, self._vocab, tokens)
        end = self._position + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(self._position, end, dtype=np.int64)[None],
        }
        given = {each.name for each in self._session.get_inputs()}
        logits, *state = self._session.run(None, {k: v for k, v in (inputs | self._state).items() if k in given})
        self._state = dict(zip(self._state, state, strict=True))
        self._position = end
        return logits[0, -1]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A runtime of one file, in another folder that the package is told to search."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "plain_ort.py").write_text(TOY)
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path / "more")])
    yield "plain-ort"
    del sys.modules["lfm2_export.runtimes.plain_ort"], runtimes.plain_ort


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("runtimes") / "nano"
    return export("nano", "onnx-fp32", output, overrides=["window=96"], verify=False)[0]


def test_a_new_runtime_is_one_file(toy: str, artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy in runtimes.names()
    assert toy in runtimes.usual(artifact.manifest)
    assert runtimes.first(artifact.manifest).name == "onnxruntime"

    ours = runtimes.find(toy).open_session(artifact.folder, artifact.manifest)
    theirs = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
    for chunk in ([5, 6, 7], [8], [9, 10]):
        np.testing.assert_allclose(ours.prefill(chunk), theirs.prefill(chunk), atol=1e-4)
    np.testing.assert_allclose(ours.decode(11), theirs.decode(11), atol=1e-4)
    assert ours.position == theirs.position == 7
    assert ours.probes() == {}
    with pytest.raises(UsageError, match="keeps the state of this form to itself"):
        ours.restore(theirs.state())

    report = prove(artifact, open_checkpoint("nano"), [toy], Effort(200, 4, 1, 4, 24))
    (proven,) = report.runtimes
    assert (proven.runtime, proven.status) == (toy, "pass")
    assert {law.name: law.reason for law in proven.laws}["snapshot"] == f"{toy} keeps the state of this form to itself"
    assert proven.task_accuracy is not None

    question = ["chat", str(artifact.folder), "--runtime", toy, "--prompt", "What color is the sky?"]
    assert code_of(*question) == 0
    assert "The sky is blue." in capsys.readouterr().out


def test_a_runtime_that_is_not_meant_for_it_says_why_and_who_is(artifact: Artifact) -> None:
    with pytest.raises(
        UsageError, match=r"'executorch' does not run this .*: it runs xnnpack in .*; able: onnxruntime, "
    ):
        runtimes.check_runs("executorch", artifact.manifest)
    lfm3 = artifact.manifest.model_copy(deep=True)
    lfm3.source.config["model_type"] = "lfm3"
    with pytest.raises(UsageError, match=r"onnxruntime-genai 0\.18\.0, .* no class for lfm3 .*; able: onnxruntime, "):
        prove(Artifact(artifact.folder, lfm3), open_checkpoint("nano-lfm3"), ["genai"])
    with pytest.raises(UsageError, match="it runs graphs in fp16"):
        runtimes.check_runs("onnxruntime-cuda", artifact.manifest)


def test_without_its_file_it_is_unknown() -> None:
    with pytest.raises(
        UsageError, match=r"unknown runtime 'plain-ort'; known: arm64, coreml, coremltools, executorch, .*onnxruntime"
    ):
        runtimes.find("plain-ort")


@pytest.mark.parametrize("name", runtimes.names())
def test_a_runtime_is_named_as_its_file_and_knows_what_it_runs(name: str) -> None:
    runtime = runtimes.find(name)
    assert runtime.name == name
    assert runtime.targets
    assert all(runtimes.find(f"{name}/{each}").name == f"{name}/{each}" for each in runtime.processors)


def test_describing_runtimes_imports_no_library() -> None:
    program = (
        "import sys; from lfm2_export import runtimes; found = [*map(runtimes.find, runtimes.names())]; assert found;"
        "print({'torch', 'onnxruntime', 'executorch', 'onnx', 'onnxruntime_genai'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
