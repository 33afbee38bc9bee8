"""What a text costs stands beside speed: divergence from fp32 of artifacts and of GGUF files, by the same tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkpoints import tiny_config
from command import QUICK, code_of
from small_gguf import write_gguf

from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bench.report import BenchReport
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.exact import Reading, read_exactly
from lfm2_export.evaluate.metrics import summary
from lfm2_export.evaluate.teacher_forcing import rows_of
from lfm2_export.evaluate.text import text_of_file
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "held-out.txt"
    file.write_text("What color is the sky? The sky is blue. Tom has the lamp. Who has the lamp? Tom has it. " * 6)
    return file


def test_divergence_from_fp32_stands_beside_speed(small_onnx, text, tmp_path, capsys):
    """The figures are those of the artifact's own session on the same tokens, and of any artifact of those weights."""
    finer = export("nano", "onnx-int8", tmp_path / "finer", overrides=["window=96"], verify=False)[0].folder
    assert code_of("bench", str(small_onnx), "--vs", str(finer), *QUICK, "--text", str(text), "--json") == 0
    report = BenchReport.model_validate_json(capsys.readouterr().out)
    assert report.text == text.name
    nano, opened = open_checkpoint("nano"), open_artifact(small_onnx)
    sequences = text_of_file(text, ChatTokenizer.load(small_onnx, nano.config), opened.manifest.window).sequences
    assert len(sequences) > 1
    session = runtimes.first(opened.manifest).open_session(small_onnx, opened.manifest, 1)
    (exact,) = read_exactly(nano, [Reading(sequences)])
    four, eight = (contender.loss for contender in report.contenders)
    alone = summary(rows_of(session, exact, sequences))
    assert four.mean_kld == pytest.approx(alone.mean_kld, rel=1e-3)
    assert (four.tokens, four.top1) == (alone.tokens, alone.top1)
    assert eight.mean_kld < four.mean_kld / 4
    assert code_of("bench", str(small_onnx), *QUICK, "--text", str(text)) == 0
    shown = capsys.readouterr().out
    for expected in ("against fp32, on held-out.txt", "KLD", "top-1", "@64"):
        assert expected in shown


def test_a_text_is_held_against_the_checkpoint_that_all_were_made_from(small_onnx, text, tmp_path, capsys):
    init_checkpoint(tiny_config(), tmp_path / "other")
    assert code_of("bench", str(small_onnx), *QUICK, "--text", str(text), "--checkpoint", str(tmp_path / "other")) == 2
    assert "digest differs" in capsys.readouterr().err
    assert code_of("bench", str(small_onnx), *QUICK, "--checkpoint", "nano") == 2
    assert "there is no --text" in capsys.readouterr().err


needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None or find_spec("gguf") is None,
    reason="llama-cpp-python and gguf are not installed: the first compiles for minutes",
)


@needs_llama_cpp
def test_a_gguf_of_the_same_weights_in_fp32_loses_nothing(text, tmp_path, capsys):
    file = write_gguf(open_checkpoint("nano"), tmp_path / "nano.gguf")
    assert code_of("bench", str(file), *QUICK, "--text", str(text), "--checkpoint", "nano", "--json") == 0
    (contender,) = json.loads(capsys.readouterr().out)["contenders"]
    assert contender["loss"]["mean_kld"] < 1e-5  # keys and values in fp16
    assert contender["loss"]["top1"] == 1
    assert code_of("bench", str(file), *QUICK, "--text", str(text)) == 2
    assert "pass --checkpoint" in capsys.readouterr().err


@needs_llama_cpp
def test_a_gguf_of_another_model_is_one_line(small_onnx, text, tmp_path, capsys):
    init_checkpoint(replace(tiny_config(), vocab_size=320), tmp_path / "other")
    file = write_gguf(open_checkpoint(str(tmp_path / "other")), tmp_path / "other.gguf")
    assert code_of("bench", str(small_onnx), "--vs", str(file), *QUICK, "--text", str(text)) == 2
    shown = capsys.readouterr().err
    assert "another model" in shown
    assert shown.count("\n") == 1
