"""Drafts: where they come from, how long they are, and that they change the time a text takes but not the text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from eager_artifacts import artifact_of, tiny_session
from scipy.special import softmax
from scipy.stats import chisquare

from benchmarks.cpu import RESULTS
from benchmarks.simulated_replies import misled
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.drafts import Drafts, Lookup, SmallerModel, Source, best_length
from lfm2_export.chat.generation import generate
from lfm2_export.chat.open_drafts import draft_source
from lfm2_export.chat.sampling import MinPSampler, Sampler, greedy
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession
from lfm2_export.runtimes.session import DraftCost, Session, check_kept

COSTS = (Session.draft_cost, OnnxRuntimeSession.draft_cost)
PROMPT = (5, 9, 5, 9, 5, 9, 12, 5, 9)


class Chain(Session):
    """A model whose next token depends on the last one alone: `logits [vocab, vocab]`."""

    runtime, version, window, verifies, has_state = "chain", "0", 64, 8, False

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits
        self.fed: list[int] = []
        self._verified: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        return len(self.fed)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self.fed += tokens
        return self._logits[self.fed[-1]].copy()

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        self._verified = tuple(tokens)
        return self._logits[list(tokens)].copy()

    def keep(self, count: int) -> None:
        check_kept(count, len(self._verified))
        self.fed += self._verified[:count]

    def reset(self) -> None:
        self.fed = []


def fixed(*guesses: int) -> Source:
    """A source that always guesses the same."""
    return lambda seen, most: list(guesses[:most])


def text(
    session: Session, sampler: Sampler = greedy, source: Source | None = None, stop: Sequence[int] = ()
) -> list[int]:
    session.reset()
    drafts = None if source is None else Drafts(source)
    return list(generate(session, PROMPT, stop, 40, sampler, drafts))


class TestSameText:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("name", ["lookup", "itself", "another model"])
    def test_greedy_and_sampled(self, name: str, seed: int) -> None:
        """Sampled too, for the same seed: the sampler draws once a token, from the same logits."""
        session = tiny_session(window=64, seed=seed)
        for sampler in (greedy, lambda: MinPSampler(temperature=0.8, seed=seed)):
            expected = text(session, sampler if sampler is greedy else sampler())
            other = tiny_session(window=64, seed=seed if name == "itself" else 100)
            source = Lookup() if name == "lookup" else SmallerModel(other)
            assert text(session, sampler if sampler is greedy else sampler(), source) == expected

    def test_what_was_fed_is_what_was_said(self) -> None:
        session = tiny_session(window=64)
        said = text(session, source=SmallerModel(tiny_session(window=64)))
        assert session.position == len(PROMPT) + len(said)
        onward = session.decode(3)
        session.reset()
        session.prefill([*PROMPT, *said])
        assert np.allclose(session.decode(3), onward, atol=1e-5)

    @pytest.mark.parametrize("limit", [0, 1, 2, 5])
    def test_never_more_than_the_limit(self, limit: int) -> None:
        session = tiny_session(window=64)
        drafts = Drafts(SmallerModel(tiny_session(window=64)))
        assert len(list(generate(session, PROMPT, [], limit, drafts=drafts))) == limit
        assert session.position == len(PROMPT) + limit

    def test_a_stop_token_inside_a_draft_ends_it(self) -> None:
        session = tiny_session(window=64)
        whole = text(session)
        stop = whole[3]
        expected = whole[: whole.index(stop)]
        drafts = Drafts(SmallerModel(tiny_session(window=64)))
        session.reset()
        assert list(generate(session, PROMPT, [stop], 40, drafts=drafts)) == expected
        assert session.position == len(PROMPT) + len(expected) + 1

    def test_ends_at_the_window(self) -> None:
        session = tiny_session(window=16)
        drafts = Drafts(SmallerModel(tiny_session(window=16)))
        plain = list(generate(tiny_session(window=16), PROMPT, [], 40))
        assert list(generate(session, PROMPT, [], 40, drafts=drafts)) == plain
        assert session.position == 16


def test_sampling_keeps_its_distribution() -> None:
    """Three tokens of a chain, 6000 times, behind drafts that are often wrong: all 64 texts as often as they must."""
    vocab = 4
    logits = np.random.default_rng(3).normal(0, 1, (vocab, vocab)).astype(np.float32)
    chances = softmax(logits.astype(np.float64), axis=1)
    sampler = MinPSampler(temperature=1.0, min_p=0.0, repetition_penalty=1.0, seed=1)
    session, drafted, accepted = Chain(logits), 0, 0
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        session.reset()
        drafts = Drafts(fixed(2, 1))  # anew: it would soon give up on such guesses
        found[tuple(generate(session, [0], [], 3, sampler, drafts))] += 1
        drafted, accepted = drafted + drafts.drafted, accepted + drafts.accepted
    texts = list(itertools.product(range(vocab), repeat=3))
    expected = [6000 * chances[0, a] * chances[a, b] * chances[b, c] for a, b, c in texts]
    assert drafted > 6000
    assert 0.1 < accepted / drafted < 0.9
    assert chisquare([found[each] for each in texts], expected).pvalue > 1e-3


class TestLookup:
    def test_guesses_what_followed_last(self) -> None:
        assert Lookup()([1, 2, 3, 4, 1, 2, 5, 6, 7, 1, 2], 3) == [5, 6, 7]

    def test_a_longer_run_goes_before_a_later_one(self) -> None:
        for run in ([9, 8, 1, 2], [7, 5, 9, 4, 9, 8, 1, 2]):
            assert Lookup()([*run, 3, *run[len(run) // 2 :], 4, *run], 1) == [3]

    def test_a_loop_goes_on(self) -> None:
        assert Lookup()([5, 1, 2, 3, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]
        assert Lookup()([7, 7, 7], 4) == [7, 7, 7, 7]

    def test_has_no_idea_of_new_text(self) -> None:
        assert Lookup()(range(50), 5) == []

    def test_forgets_another_conversation(self) -> None:
        lookup = Lookup()
        lookup([1, 2, 3, 1, 2], 1)
        assert lookup([7, 8, 9, 1, 2], 1) == []

    def test_follows_one_that_grows(self) -> None:
        lookup, said = Lookup(), [1, 2, 3]
        assert lookup(said, 2) == []
        said += [4, 1, 2]
        assert lookup(said, 2) == [3, 4]


class Copying:
    """A text of all different tokens that is said, copied as far as a draft, and then goes on with others."""

    def __init__(self) -> None:
        self.original, self.lookup = list(range(100, 130)), Lookup()
        self.said = [*self.original, 1, *self.original[:4]]
        assert self.lookup(self.said, 3) == self.original[4:7]

    def then(self, *tokens: int) -> list[int]:
        """What is guessed behind the last of these, asked behind each."""
        for token in tokens:
            self.said.append(token)
            guesses = self.lookup(self.said, 3)
        return guesses


class TestDifference:
    """How a copy goes on that differs from its original."""

    def test_in_a_word(self) -> None:
        copy = Copying()
        assert copy.then(900) == []
        assert copy.then(105) == copy.original[6:9]

    def test_in_the_middle_of_a_draft_and_behind_a_whole_one(self) -> None:
        for right in (2, 3):
            copy = Copying()
            copy.said += copy.original[4 : 4 + right]
            assert copy.then(900) == []
            assert copy.then(105 + right) == copy.original[6 + right : 9 + right]

    def test_in_several_tokens_of_either(self) -> None:
        assert Copying().then(900, 901, 902, 903, 112) == [113, 114, 115]
        assert Copying().then(900, 901, 902, 903, 113) == []  # eight of the original
        assert Copying().then(*range(900, 907), 105) == [106, 107, 108]
        assert Copying().then(*range(900, 908), 105) == []  # eight of the copy

    def test_once_more_in_each_record(self) -> None:
        """A form is filled in a second time: behind each value one token tells that the next key has come."""
        lookup, said = Lookup(), [1, 2, 3, 50, 4, 5, 6, 51, 7, 8, 9, 52, 0]
        guessed = list[int]()
        for token in [1, 2, 3, 60, 4, 5, 6, 61, 7, 8, 9, 62]:
            guessed += [token] if lookup(said, 1) == [token] else []
            said.append(token)
        assert guessed == [3, 5, 6, 8, 9]

    def test_a_token_elsewhere_is_no_place_to_go_on(self) -> None:
        assert Copying().then(900, 103) == []  # before the difference
        assert Copying().then(900, 120) == []  # far behind it

    def test_nothing_follows_the_last_token(self) -> None:
        lookup, said = Lookup(), [1, 2, 3, 4, 1, 2]
        assert lookup(said, 2) == [3, 4]
        assert lookup([*said, 9], 2) == []
        assert lookup([*said, 9, 8], 2) == []  # neither 9 nor 8 stands behind itself

    def test_in_a_loop(self) -> None:
        lookup, said = Lookup(), [5, 1, 2, 3, 1, 2, 3, 1, 2]
        assert lookup(said, 4) == [3, 1, 2, 3]
        assert lookup([*said, 3, 1, 9], 4) == []
        assert lookup([*said, 3, 1, 9, 3], 4) == [1, 9, 3, 1]

    def test_is_forgotten_with_the_conversation(self) -> None:
        copy = Copying()
        assert copy.then(900) == []
        assert copy.lookup([*copy.said[:-2], 105], 3) == []  # it went back
        copy = Copying()
        assert copy.then(900) == []
        assert copy.lookup([*range(500, 600), *copy.original, 900, 105], 3) == []

    def test_whose_draft_was_not_asked_for(self) -> None:
        """Where drafts cannot be paid, lookup sees several tokens at once."""
        copy = Copying()
        copy.said += [104, 900]
        assert copy.then(106) == copy.original[7:10]


def _said(drafts: Drafts, draw: np.random.Generator, rate: float) -> tuple[int, float]:
    """Tokens of a call whose guesses are each right with that probability, and the steps that it takes beyond them."""
    guesses = drafts.propose((), 15)
    right = next((n for n, wrong in enumerate(draw.random(len(guesses)) >= rate) if wrong), len(guesses))
    if guesses:
        drafts.judged(len(guesses), right)
    return right + 1, drafts.cost.of(len(guesses)) - right if guesses else 0.0


class TestLength:
    @pytest.mark.parametrize("cost", COSTS)
    def test_grows_with_acceptance(self, cost: DraftCost) -> None:
        lengths = [best_length(acceptance / 20, 15, cost) for acceptance in range(21)]
        assert lengths == sorted(lengths)
        assert (lengths[0], lengths[-1]) == (0, 15)

    @pytest.mark.parametrize("cost", COSTS)
    def test_new_text_costs_little(self, cost: DraftCost) -> None:
        """Guesses that are always wrong, which lookup hardly makes: what they cost 1000 tokens is little."""
        drafts = Drafts(fixed(1, 1, 1, 1, 1, 1, 1), cost)
        spent = 0.0
        for _ in range(1000):
            guesses = drafts.propose((), 7)
            if guesses:
                spent += drafts.cost.of(len(guesses))
                drafts.judged(len(guesses), 0)
        assert spent < 0.008 * 1000

    @pytest.mark.parametrize("cost", COSTS)
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
    def test_no_reply_loses_more_than_its_credit(self, cost: DraftCost, rate: float) -> None:
        """Two steps and one in 200 calls, at whatever call it ends."""
        for seed in range(20):
            drafts, draw, lost = Drafts(fixed(*[1] * 15), cost), np.random.default_rng(seed), 0.0
            for call in range(1, 400):
                if call == 200:
                    rate = 0.0  # whatever was saved before
                lost += _said(drafts, draw, rate)[1]
                assert lost < 2 + 0.005 * call + 1e-9

    @pytest.mark.parametrize(("cost", "faster"), zip(COSTS, (1.15, 1.15), strict=True))
    def test_half_right_is_not_given_up(self, cost: DraftCost, faster: float) -> None:
        tokens = lost = 0.0
        for seed in range(40):
            drafts, draw = Drafts(fixed(*[1] * 15), cost), np.random.default_rng(seed)
            for _ in range(100):
                said, spent = _said(drafts, draw, 0.5)
                tokens, lost = tokens + said, lost + spent
        assert tokens / (tokens + lost) > faster

    def test_is_short_until_what_was_lost_is_back(self) -> None:
        drafts, lengths = Drafts(fixed(*[1] * 15)), list[int]()
        for right in (False, True, True, True):
            lengths.append(len(drafts.propose((), 15)))
            drafts.judged(lengths[-1], lengths[-1] * right)
        assert lengths[1] == 2
        assert min(lengths[0], lengths[-1]) > 4

    @pytest.mark.parametrize("machine", ["", "-zen5"])
    @pytest.mark.parametrize("shape", ["350m", "1.2b"])
    def test_text_that_misleads_costs_little_at_measured_prices(self, shape: str, machine: str) -> None:
        """Of CPUs with slow and with fast memory, whose calls of eight rows differ by two steps to one."""
        report = f"2026-11-28-speculation-{shape}-xnnpack-int4-executorch-cost-2t{machine}.json"
        assert misled(RESULTS / report, 100) > 0.97

    def test_comes_back_when_text_repeats_again(self) -> None:
        drafts = Drafts(fixed(1, 1, 1, 1, 1, 1, 1))
        for right in [False] * 100 + [True] * 100:
            if guesses := drafts.propose((), 7):
                drafts.judged(len(guesses), len(guesses) * right)
        assert len(drafts.propose((), 7)) >= 4


class TestChat:
    def test_nano_copies_and_says_the_same(self) -> None:
        nano = open_checkpoint("nano")
        tokenizer = ChatTokenizer.load(nano.folder, nano.config)
        assert tokenizer is not None
        decoder, said = load_decoder(nano), []
        for source in (None, Lookup()):
            conversation = Conversation(EagerSession(decoder, 256), tokenizer, source=source)
            for asked in ("My name is Anna.", "What is my name?", "What is my name?", "What is my name?"):
                said.append("".join(conversation.reply(asked, 24)))
        assert said[:4] == said[4:]
        assert conversation.speed.accepted_tokens > 0
        assert "drafted" in conversation.speed.line()

    def test_another_vocabulary_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = tiny_session()
        mine = artifact_of(session.decoder.config)
        other = artifact_of(session.decoder.config)
        other.manifest.files["tokenizer.json"].sha256 = "c" * 64
        monkeypatch.setattr("lfm2_export.chat.open_drafts.open_artifact", lambda folder: other)
        with pytest.raises(UsageError, match="another vocabulary"):
            draft_source(".", session, mine)

    def test_needs_a_session_that_verifies(self) -> None:
        session = tiny_session()
        session.verifies = 0
        with pytest.raises(UsageError, match="verifies no drafts"):
            draft_source("lookup", session, artifact_of(session.decoder.config))
