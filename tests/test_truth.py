"""A proof's shortcuts say what the long way says: whole passes = call by call, layer by layer = the whole model."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import SHAPES, random_decoder, relative, state_error, tokens

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.evaluate.exact import Reading, read_exactly
from lfm2_export.model.load import load_decoder
from lfm2_export.parity.cases import Case, lowering_cases
from lfm2_export.parity.truth import EagerTruth, SessionTruth
from lfm2_export.quantize.apply import round_caches
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 96
CLOSE = 1e-5  # fp32 sums in another order


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_passes_answer_every_case_as_calls_one_by_one_do(shape: str) -> None:
    decoder = random_decoder(**SHAPES[shape])
    cases = lowering_cases(decoder.config, WINDOW, tokens(60), pads=True)
    quick, slow = EagerTruth(decoder, WINDOW, cases), SessionTruth(EagerSession(decoder, WINDOW))
    for case in cases:
        found, expected = quick.answer(case), slow.answer(case)
        assert relative(found.logits, expected.logits) < CLOSE
        assert found.state is not None
        assert expected.state is not None
        assert state_error(found.state, expected.state) < CLOSE


@pytest.mark.parametrize("shape", ["plain", "width 5 with bias", "conv only", "attention only"])
def test_single_steps_start_and_end_with_the_same_states(shape: str) -> None:
    decoder = random_decoder(**SHAPES[shape])
    ids = tuple(tokens(20))
    slow = SessionTruth(EagerSession(decoder, WINDOW)).steps(ids)
    for ours, theirs in zip(EagerTruth(decoder, WINDOW).steps(ids), slow, strict=True):
        assert ours.token == theirs.token
        assert relative(ours.logits, theirs.logits) < CLOSE
        assert state_error(ours.before, theirs.before) < CLOSE
        assert state_error(ours.after, theirs.after) < CLOSE


def test_replies_side_by_side_are_the_replies_one_by_one_up_to_the_window() -> None:
    decoder = random_decoder()
    prompts = [tuple(tokens(count, seed=count)) for count in (3, 17, 30, 1)]
    for window in (64, 36):  # the third prompt's reply is cut by the smaller one
        quick = EagerTruth(decoder, window).continuations(prompts, 16)
        slow = SessionTruth(EagerSession(decoder, window)).continuations(prompts, 16)
        for ours, theirs in zip(quick, slow, strict=True):
            assert ours.tokens == theirs.tokens
            assert relative(ours.logits, theirs.logits) < CLOSE


def test_a_disturbed_pass_is_a_little_off_and_the_same_again() -> None:
    decoder = random_decoder()
    cases = [Case("whole", tuple(tokens(20)), (20,)), Case("steps", tuple(tokens(20)), (1,) * 20)]
    truth = EagerTruth(decoder, WINDOW, cases)
    first, again = list(truth.disturbed(cases)), list(EagerTruth(decoder, WINDOW).disturbed(cases))
    for case, ours, same in zip(cases, first, again, strict=True):
        assert np.array_equal(ours.logits, same.logits)
        assert 0 < relative(ours.logits, truth.answer(case).logits) < 1e-4
    assert not np.array_equal(first[0].logits[-1], first[1].logits[-1])  # drawn for each call


def test_the_model_is_asked_once_however_many_runtimes_are_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder()
    cases = lowering_cases(decoder.config, WINDOW, tokens(60), pads=True)
    truth, prompts = EagerTruth(decoder, WINDOW, [*cases, *cases[:-1]]), [tuple(tokens(9)), tuple(tokens(5))]
    first = list(truth.disturbed(cases)), [truth.answer(case) for case in cases], truth.continuations(prompts, 8)
    monkeypatch.setattr(decoder.embed_tokens, "forward", lambda *_: pytest.fail("the model was asked again"))
    again = list(truth.disturbed(cases)), [truth.answer(case) for case in cases], truth.continuations(prompts, 8)
    for ours, theirs in zip(first, again, strict=True):
        assert all(np.array_equal(a.logits, b.logits) for a, b in zip(ours, theirs, strict=True))
    assert len(list(truth.disturbed(cases[:-1]))) == len(cases) - 1  # of a runtime that takes no padding


def test_disturbed_steps_begin_at_the_undisturbed_states_and_end_near_the_undisturbed_ones() -> None:
    decoder = random_decoder()
    ids = tuple(tokens(20))
    truth = EagerTruth(decoder, WINDOW)
    for ours, theirs in zip(truth.disturbed_steps(ids), truth.steps(ids), strict=True):
        assert state_error(ours.before, theirs.before) == 0
        assert 0 < relative(ours.logits, theirs.logits) < 1e-4
        assert 0 < state_error(ours.after, theirs.after) < 1e-4


def test_fp32_layer_by_layer_is_the_whole_model(nano: Checkpoint) -> None:
    sequences = [tuple(np.random.default_rng(count).integers(0, 900, count).tolist()) for count in (30, 2, 64, 17)]
    exact, rounded, last = read_exactly(nano, [Reading(sequences), Reading(sequences[:2], "bfloat16")], sequences[:1])
    whole = load_decoder(nano)
    eager = EagerSession(whole, 128)
    for number, sequence in enumerate(sequences):
        eager.reset()
        expected = eager.score(sequence)
        assert relative(exact.logits(number).numpy(), expected) < CLOSE
        assert relative(exact.logits(number, 1, 2).numpy(), expected[1:2]) < CLOSE
    round_caches(whole, "bfloat16")
    eager.reset()
    expected = eager.score(sequences[0])
    assert relative(rounded.logits(0).numpy(), expected) < CLOSE
    assert relative(rounded.logits(0).numpy(), exact.logits(0).numpy()) > 10 * CLOSE
    assert [layer.shape for layer in last.layers[0]] == [(30, nano.config.hidden_size)] * nano.config.num_hidden_layers
