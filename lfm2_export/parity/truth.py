"""What an artifact must say: the logits and states of a reference, for cases, single steps and greedy text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm2_export.chat.sampling import greedy
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import empty_state, write_slices
from lfm2_export.parity.cases import Case
from lfm2_export.parity.passage import Passage, Step, Tokens, passages, steps_from
from lfm2_export.runtimes.eager import eager_on
from lfm2_export.runtimes.session import Session, Snapshot

_KEPT = 1 << 26  # bytes of logits, or so: all cases of one runtime at a vocabulary of 65,536
_DISTURBANCE = 2.0**-20  # relative, standard deviation: what an fp32 sum of a thousand terms leaves open


class Answer(NamedTuple):
    """The answer to a case: logits after each call, `[calls, vocab] fp32`, and the last state; None if hidden."""

    logits: np.ndarray
    state: Snapshot | None


class Continuation(NamedTuple):
    """A greedy reply: its tokens, and the logits `[tokens + 1, vocab]` after the prompt and after each of them."""

    tokens: Tokens
    logits: np.ndarray


class Truth(ABC):
    """A reference."""

    runtime: str

    @abstractmethod
    def answer(self, case: Case) -> Answer:
        """Return what the reference says to a case."""

    @abstractmethod
    def steps(self, tokens: Tokens) -> Iterator[Step]:
        """Yield every step of decoding `tokens` from an empty state."""

    def disturbed_steps(self, tokens: Tokens) -> Iterator[Step]:
        """Yield the same steps, each from its undisturbed state, as rounding alone would have them; or none."""
        return iter(())

    @abstractmethod
    def continuations(self, prompts: Sequence[Tokens], limit: int) -> list[Continuation]:
        """Return the greedy reply to each prompt, `limit` rows of logits or as many as the window holds."""


class SessionTruth(Truth):
    """A reference that is a session itself, asked call by call."""

    def __init__(self, session: Session) -> None:
        self.session, self.runtime = session, session.runtime

    def answer(self, case: Case) -> Answer:
        """Run the case."""
        return answer(self.session, case)

    def steps(self, tokens: Tokens) -> Iterator[Step]:
        """Decode, looking at the state around every step."""
        self.session.reset()
        before = self.session.state()
        for token in tokens:
            logits = self.session.decode(token)
            after = self.session.state()
            yield Step(token, before, logits, after)
            before = after

    def continuations(self, prompts: Sequence[Tokens], limit: int) -> list[Continuation]:
        """Reply to one prompt after the other."""
        return [self._continuation(prompt, limit) for prompt in prompts]

    def _continuation(self, prompt: Tokens, limit: int) -> Continuation:
        self.session.reset()
        logits, said = [self.session.prefill(prompt)], list[int]()
        while len(logits) < limit and self.session.position < self.session.window:
            said.append(greedy(logits[-1], ()))
            logits.append(self.session.decode(said[-1]))
        return Continuation(tuple(said), np.stack(logits))


class EagerTruth(Truth):
    """A model in eager PyTorch, on the device that holds it: whole sequences at once, each of them only once however
    many cases begin with it."""

    def __init__(self, decoder: Decoder, window: int, cases: Sequence[Case] = (), half: bool = False) -> None:
        """`cases` are known beforehand, so that all their sequences go through the model side by side.

        `half`: what it is the truth of rounds every value to fp16, which then is the disturbance as well.
        """
        self.decoder, self.window, self.half = decoder, window, half
        self.runtime = eager_on(decoder.device)
        self._cases = tuple(dict.fromkeys(cases))
        self._replies: dict[tuple[tuple[Tokens, ...], int], list[Continuation]] = {}
        self._answers: dict[Case, Answer] = {}

    @cached_property
    def _known(self) -> dict[Tokens, Passage]:
        """The passages of the longest sequences, of which all others are beginnings."""
        sequences = sorted({case.tokens for case in self._cases}, key=len, reverse=True)
        longest: list[Tokens] = []
        for each in sequences:
            if not any(other[: len(each)] == each for other in longest):
                longest.append(each)
        return dict(zip(longest, passages(self.decoder, longest), strict=True)) if longest else {}

    def _passage(self, tokens: Tokens) -> Passage:
        for known, passage in self._known.items():
            if known[: len(tokens)] == tokens:
                return passage
        self._known[tokens] = passages(self.decoder, [tokens])[0]
        return self._known[tokens]

    def answer(self, case: Case) -> Answer:
        """Read the answer off the case's sequence; those to the first cases are kept for whoever asks again."""
        if case in self._answers:
            return self._answers[case]
        found = _read(self._passage(case.tokens), case)
        if found.logits.nbytes + sum(each.logits.nbytes for each in self._answers.values()) <= _KEPT:
            self._answers[case] = found
        return found

    def disturbed(self, cases: Sequence[Case]) -> Iterator[Answer]:
        """Yield what the model says when every embedding it looks up is multiplied by 1 ± 2⁻²⁰. Deterministic.

        For a graph in fp16 every value on the way is rounded as there, too.
        """
        self._ways |= self._disturbed([case for case in cases if case not in self._ways])
        return (_read(self._ways[case], case) for case in cases)

    @cached_property
    def _ways(self) -> dict[Case, Passage]:
        """The disturbed passages, of all cases known beforehand."""
        return self._disturbed(self._cases)

    def _disturbed(self, cases: Sequence[Case]) -> dict[Case, Passage]:
        if not cases:
            return {}
        factors = [_disturbance(case, self._width) for case in cases]
        return dict(
            zip(cases, passages(self.decoder, [case.tokens for case in cases], factors, self.half), strict=True)
        )

    @property
    def _width(self) -> int:
        return self.decoder.embed_tokens.weight.shape[1]

    def steps(self, tokens: Tokens) -> Iterator[Step]:
        """Read the steps off the sequence."""
        passage = self._passage(tokens)
        logits = passage.logits(range(1, len(tokens) + 1))
        before = passage.state(0)
        for number, token in enumerate(tokens):
            after = passage.state(number + 1)
            yield Step(token, before, logits[number], after)
            before = after

    @torch.inference_mode()
    def disturbed_steps(self, tokens: Tokens) -> Iterator[Step]:
        """Take all steps side by side, a row each, with their embeddings disturbed as in `disturbed`."""
        passage = self._passage(tokens)
        before = [passage.state(position) for position in range(len(tokens))]
        factors = [_factors(1, self._width, position) for position in range(len(tokens))]
        yield from steps_from(self.decoder, tokens, before, factors, self.half)

    def continuations(self, prompts: Sequence[Tokens], limit: int) -> list[Continuation]:
        """Reply to all prompts side by side, once however often it is asked."""
        asked = (tuple(prompts), limit)
        if asked not in self._replies:
            self._replies[asked] = self._continuations(prompts, limit)
        return self._replies[asked]

    @torch.inference_mode()
    def _continuations(self, prompts: Sequence[Tokens], limit: int) -> list[Continuation]:
        rows, longest, device = len(prompts), max(map(len, prompts)), self.decoder.device
        state = empty_state(self.decoder.config, min(self.window, longest + limit), rows, device=device)
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        position = torch.zeros_like(length)
        said: list[list[int]] = [[] for _ in prompts]
        logits: list[list[np.ndarray]] = [[] for _ in prompts]
        while True:
            # a row that has ended is computed and not kept
            found, new = self.decoder(tokens, position, length.clamp(min=1), state)
            write_slices(state, new, position, length)
            position = position + length
            for row in range(rows):
                if int(length[row]):
                    logits[row].append(found[row].cpu().numpy())
            going = [len(each) < limit and int(at) < self.window for each, at in zip(logits, position, strict=True)]
            if not any(going):
                return [Continuation(tuple(a), np.stack(b)) for a, b in zip(said, logits, strict=True)]
            tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
            for row in (row for row in range(rows) if going[row]):
                said[row].append(greedy(logits[row][-1], ()))
                tokens[row, 0] = said[row][-1]
            length = torch.tensor(going, dtype=torch.long, device=device)


def answer(session: Session, case: Case, drafts: bool = False) -> Answer:
    """Run a case through a session; with `drafts`, read single steps as those where there are more than one draft's."""
    session.reset()
    rows: list[np.ndarray] = []
    for single, calls in groupby(case.calls(), key=lambda call: len(call) == 1):
        run = list(calls)
        if drafts and single and len(run) > session.verifies > 0:
            rows += list(session.read([token for (token,) in run]))
        else:
            rows += [session.prefill(call, case.pad_to) for call in run]
    return Answer(np.stack(rows), session.state() if session.has_state else None)


def _read(passage: Passage, case: Case) -> Answer:
    return Answer(passage.logits(list(accumulate(case.chunks))), passage.state(len(case.tokens)))


def _disturbance(case: Case, width: int) -> Tensor:
    """Factors `[T, width]`, drawn for every call by itself."""
    drawn, position = [], 0
    for size in case.chunks:
        drawn.append(_factors(size, width, position))
        position += size
    return torch.cat(drawn)


def _factors(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + _DISTURBANCE * torch.randn(rows, width, generator=generator)
