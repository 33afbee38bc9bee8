"""The embedded model knows what it was taught: without that, no accuracy figure of an artifact means anything."""

from __future__ import annotations

import pytest
from artifacts import WINDOW

from lfm2_export.checkpoint.nano import PATH
from lfm2_export.checkpoint.nano.tasks import KINDS, questions, split_of
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.questions import task_accuracy
from lfm2_export.model.load import load_decoder
from lfm2_export.runtimes.eager import EagerSession


@pytest.mark.slow
def test_nano_answers_500_held_out_questions_in_fp32(nano):
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    accuracy = task_accuracy(EagerSession(load_decoder(nano), WINDOW), tokenizer, 500)
    assert accuracy["all"] >= 0.97
    assert {kind for kind in KINDS if accuracy[kind] < 0.95} == set()


def test_held_out_questions_are_not_in_the_training_split():
    held_out, trained = questions(0, 400, "heldout"), questions(1, 4000, "train")
    assert {split_of(question) for question in held_out} == {"heldout"}
    assert {split_of(question) for question in trained} == {"train"}
    said = {repr((question.messages, question.tools)) for question in trained}
    assert not [question for question in held_out if repr((question.messages, question.tools)) in said]


def test_nano_has_every_part_of_an_lfm2_and_is_small(nano):
    config = nano.config
    assert len(config.conv_layers) >= 3
    assert len(config.attention_layers) >= 2
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings
    assert sum(path.stat().st_size for path in PATH.iterdir() if path.is_file()) < 4_000_000
