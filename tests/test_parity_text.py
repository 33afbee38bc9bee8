"""`parity --text`: what quantization cost, on a text of one's own."""

from __future__ import annotations

import gc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.metrics import Rows
from lfm2_export.evaluate.text import text_of_file
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.detail import Detail, token_divergence
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.parity.report import RuntimeReport
from lfm2_export.pipeline import export
from lfm2_export.progress import Progress

TEXT = "The sky is blue. My name is Anna.\n" * 12
SMALL = Effort(quality_tokens=50, questions=1, prompts=1, continuation=4, law_tokens=24)


def test_the_sequences_hold_the_whole_text_in_order(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(TEXT)
    found = text_of_file(tmp_path / "mine.txt", tokenizer, 50)
    assert found.kind == "mine.txt"
    assert [token for tokens in found.sequences for token in tokens] == tokenizer.encode(TEXT, add_special_tokens=True)
    assert max(len(tokens) for tokens in found.sequences) == 50


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"\xff\xfe\xff", "not UTF-8"), (b"", "too short")]
)
def test_what_is_no_text_is_refused(content: bytes | None, message: str, tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        text_of_file(path, tokenizer, 50)
    with pytest.raises(UsageError, match="tokenizer"):
        text_of_file(path, None, 50)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("made") / "nano"
    return export("nano", "onnx-int4", folder, overrides=["window=64"], verify=False)[0]


def test_quality_is_measured_on_every_token_of_it(tokenizer: ChatTokenizer, artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(TEXT)
    checkpoint = open_checkpoint("nano")
    report = prove(artifact, checkpoint, ["onnxruntime"], SMALL, text=tmp_path / "mine.txt")
    count = len(tokenizer.encode(TEXT, add_special_tokens=True))
    assert report.text == "mine.txt"
    quality = report.runtimes[0].quality
    assert quality is not None
    assert quality.tokens == count - -(-count // 64)  # the first of each window is given
    own = prove(artifact, checkpoint, ["onnxruntime"], SMALL)
    assert own.text == "held-out chats"
    assert own.runtimes[0].quality.mean_kld != quality.mean_kld


def test_a_text_in_portions_is_judged_as_a_whole_and_not_held_as_one(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text(TEXT)
    monkeypatch.setattr("lfm2_export.parity.prove._LARGE_QUICK", 0)  # sessions rest between their turns

    effort = replace(SMALL, case_tokens=8, case_steps=4, whole=False)
    detail, held = Detail(drift_steps=2, drift_samples=1), list[int]()

    def told(message: str) -> None:
        if "layer by layer over part" in message:
            held.append(sum(isinstance(each, Exact) for each in gc.get_objects()))

    def judged(portion: int) -> list[RuntimeReport]:
        monkeypatch.setattr("lfm2_export.evaluate.text.PORTION", portion)
        progress, checkpoint = Progress(told), open_checkpoint("nano")
        runtimes = prove(artifact, checkpoint, (), effort, progress, tmp_path / "mine.txt", detail).runtimes
        return [each for each in runtimes if each.status != "skipped"]

    whole, parts = judged(4096), judged(64)
    _, second, *others = held
    assert others
    assert set(others) == {second}  # each part is let go of before the next is read
    for ours, theirs in zip(parts, whole, strict=True):
        assert asdict(ours.quality) == pytest.approx(asdict(theirs.quality), rel=1e-4)
        assert ours.details.tokens.position == theirs.details.tokens.position
        assert ours.details.tokens.kld == pytest.approx(theirs.details.tokens.kld, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("sequences", "listed", "of"), [(3, 2997, None), (30, 20_000, 29_970)])
def test_a_report_lists_a_sample_of_a_book(sequences: int, listed: int, of: int | None) -> None:
    kld = np.tile(np.arange(1.0, 1000.0), sequences)  # nats: as many as there are tokens before
    found = token_divergence(Rows(*[kld] * len(Rows._fields)), [tuple(range(1000))] * sequences)
    assert (len(found.kld), found.of) == (listed, of)
    assert found.kld == found.position
    assert np.mean(found.kld) == pytest.approx(kld.mean(), rel=0.02)
