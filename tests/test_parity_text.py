"""`parity --text`: what quantization cost, on a text of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.evaluate.text import text_of_file
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.pipeline import export

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


def test_quality_is_measured_on_every_token_of_it(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(TEXT)
    artifact, _ = export("nano", "onnx-int4", tmp_path / "nano", overrides=["window=64"], verify=False)
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
