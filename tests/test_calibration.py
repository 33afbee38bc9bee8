"""Calibration tokens: the same ones every time, from each source, and a clear refusal of each bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2_export import recipes, targets
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import ArtifactError, RecipeError
from lfm2_export.model.load import load_decoder
from lfm2_export.quantize.calibration import (
    FILE,
    Calibration,
    calibration_sequences,
    digest,
    read_sequences,
    write_sequences,
)
from lfm2_export.quantize.own_text import continued
from lfm2_export.runtimes.eager import EagerSession


def test_own_text_is_the_models_reply_and_the_same_every_time(nano, tokenizer):
    wanted = Calibration(windows=6, tokens=96)
    sequences = calibration_sequences(wanted, nano, tokenizer)
    assert sequences == calibration_sequences(wanted, nano, tokenizer)
    assert len(sequences) == 6
    said = [tokenizer.decode(window, skip_special_tokens=False) for window in sequences]
    right = [question.answer in text for question, text in zip(questions(77, 6), said, strict=True)]
    assert sum(right) >= 5  # nano answers what it was trained on
    assert all(window[-1] in tokenizer.eos_ids or len(window) == 96 for window in sequences)


def test_conversations_side_by_side_are_what_each_is_alone(nano, tokenizer):
    decoder = load_decoder(nano)
    messages = [question.messages for question in questions(5, 5, split="train")]
    prompts = [tokenizer.encode(tokenizer.render(each)) for each in messages]
    prompts.append(prompts[0][:1])
    prompts.append([5] * 48)  # full before a word is said
    stop, limit = tokenizer.eos_ids, 48
    told: list[str] = []
    together = continued(decoder, [prompt[:limit] for prompt in prompts], stop, limit, told.append)
    for prompt, text in zip(prompts, together, strict=True):
        eager, alone = EagerSession(decoder, limit), list(prompt[:limit])
        logits = eager.prefill(alone)
        while len(alone) < limit and (len(alone) == len(prompt) or alone[-1] not in stop):
            alone.append(int(logits.argmax()))
            logits = eager.decode(alone[-1]) if len(alone) < limit else logits
        assert text == tuple(alone)
    assert len({len(text) for text in together}) > 2  # they did not end at the same step


def test_a_text_is_cut_into_windows(nano, tokenizer, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("The sky is blue. " * 40)
    sequences = calibration_sequences(Calibration(source="text", file=str(path), windows=3, tokens=16), nano, tokenizer)
    whole = tokenizer.encode(path.read_text(), add_special_tokens=True)
    assert [token for window in sequences for token in window] == whole[:48]
    assert [len(window) for window in sequences] == [16, 16, 16]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([5, 6, 7, 8, 9], ((5, 6, 7), (8, 9))),
        ([[5, 6], [7, 8, 9, 10]], ((5, 6), (7, 8, 9))),  # a lone last token calibrates nothing
    ],
)
def test_token_lists_are_cut_into_windows(document, expected, nano, tmp_path: Path):
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(document))
    assert calibration_sequences(Calibration(source="tokens", file=str(path), tokens=3), nano, None) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2, 1024]", "token id 1024 is outside the vocabulary of 1024"),
        (b"[1, -2]", "token id -2"),
        (b"[1, true]", "expected a list of token ids"),
        (b'{"tokens": [1]}', "expected a list of token ids"),
        (b"[1, 2", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "no window of at least two tokens"),
        (b"[[4], [5]]", "no window of at least two tokens"),
    ],
)
def test_a_bad_token_file_is_refused(content, message, nano, tmp_path: Path):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        calibration_sequences(Calibration(source="tokens", file=str(path)), nano, None)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_calibrated_on_is_refused(nano, tokenizer, tmp_path: Path):
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    bad: list[tuple[dict[str, Any], ChatTokenizer | None, str]] = [
        ({}, None, "needs the checkpoint's tokenizer and chat template"),
        ({"source": "text", "file": str(binary)}, None, "needs the checkpoint's tokenizer"),
        ({"source": "text", "file": str(binary)}, tokenizer, "not UTF-8"),
        ({"source": "text", "file": str(tmp_path / "none.txt")}, tokenizer, "no such file"),
    ]
    for wanted, given, message in bad:
        with pytest.raises(RecipeError, match=message):
            calibration_sequences(Calibration(**wanted), nano, given)


def test_windows_travel_with_the_artifact(nano, tmp_path: Path):
    sequences = ((1, 2, 3), (4, 5))
    write_sequences(tmp_path, sequences)
    assert read_sequences(tmp_path, nano.config) == sequences
    assert digest(sequences) != digest(((1, 2), (3, 4, 5)))
    (tmp_path / FILE).write_text("[[1, 99999]]")
    with pytest.raises(ArtifactError, match="outside the vocabulary"):
        read_sequences(tmp_path, nano.config)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_sequences(tmp_path, nano.config)


RECIPE = """\
name: mine
summary: static activations
target: xnnpack
window: 256
quantization:
  - {match: linear, weight: {bits: 8}, activation: int16}
calibration: {source: self}
gates:
  lowering: {max_error: 0.01}
  quality: {mean_kld: 0.1, top1: 0.9}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("calibration: {source: self}\n", ""), "calibration is missing"),
        (RECIPE.replace(", activation: int16", ""), "no rule has them"),
        (RECIPE.replace("source: self", "source: text"), ":7: calibration: .*needs a file"),
        (RECIPE.replace("source: self", "file: a.txt"), ":7: calibration: .*has no file"),
        (RECIPE.replace("source: self", "observer: guess"), ":7: calibration.observer"),
        (RECIPE.replace("source: self", "windows: 0"), ":7: calibration.windows"),
        (RECIPE.replace("source: self", "tokens: 257"), "do not fit window 256"),
        (RECIPE, "activation: int16; .*target has for a product"),
        (RECIPE.replace("xnnpack", "onnx"), "activation: int16; .*target has for a product"),
    ],
)
def test_a_recipe_whose_calibration_cannot_work_is_refused(text, message, nano, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    def check() -> None:
        recipe = recipes.load(str(path))
        recipe.check(nano.config)
        targets.find(recipe.target).check(recipe, nano.config)

    with pytest.raises(RecipeError, match=message):
        check()
