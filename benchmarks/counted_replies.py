"""What lookup gets right in a trained model's own replies, each said plainly and with drafts: counts, no times.

The replies are to nano's held-out questions, alone and asked once more in the same conversation; or to held-out tasks
that copy (`benchmarks.copying`), by kind, which takes a model that was taught them. Where two texts differ, the margin
between the two likeliest tokens there is compared with the recipe's lowering error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from benchmarks.copying import KINDS, copying
from lfm2_export.chat.drafts import Drafts, Lookup
from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.nano.tasks import Question, questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.runtimes.session import Session

_SEED = 500  # of held-out questions, as every proof asks them
_TOGETHER = 8  # questions of one conversation
_REPLY, _COPY, _ENDLESS = 48, 160, 160  # tokens at most

Cost = dict[int, float]  # tokens of a call → its time, in decode steps


@dataclass
class Counted(Drafts):
    """Drafts that remember how long they were, and how many had a wrong guess."""

    sizes: Counter[int] = field(default_factory=Counter)  # tokens of a verifying call → calls
    missed: int = 0

    def judged(self, drafted: int, accepted: int) -> None:
        super().judged(drafted, accepted)
        self.sizes[drafted + 1] += 1
        self.missed += accepted < drafted


@dataclass
class Said:
    """What lookup made of some replies, and where they differ from plain decoding's."""

    replies: int = 0
    right: int = 0  # of the replies, where there is one right answer
    tokens: int = 0
    calls: int = 0  # steps and verified drafts
    tokens_of_calls: dict[int, int] = field(default_factory=dict)  # tokens of a call → calls; the price of a reply
    drafted: int = 0
    accepted: int = 0
    missed: int = 0  # drafts with a wrong guess; those behind it are not judged
    different: int = 0  # replies
    close_calls: int = 0  # of those, whose margin at the first difference is below the lowering error
    margins: list[float] = field(default_factory=list)  # there, relative to the largest logit

    def report(self, cost: Cost | None) -> dict[str, object]:
        """The counts, the share of judged guesses that were right, and how many times faster than steps that is."""
        judged = self.accepted + self.missed
        shares = {"acceptance": self.accepted / max(1, judged), "tokens_a_call": self.steps / max(1, self.calls)}
        if cost is not None:
            spent = sum(calls * (1 if size == 1 else cost[size]) for size, calls in self.tokens_of_calls.items())
            shares["times_faster"] = self.steps / spent
        return asdict(self) | {name: round(value, 3) for name, value in shares.items()}

    @property
    def steps(self) -> int:
        """Calls that plain decoding makes: one a token, the one that ends a reply among them."""
        return self.calls + self.accepted


class Replies:
    """Says replies twice with one session and compares them; `tie`: the margin below which two tokens are as likely."""

    def __init__(self, session: Session, tokenizer: ChatTokenizer, tie: float) -> None:
        self._session, self._tokenizer, self._tie = session, tokenizer, tie

    def to_questions(self, count: int) -> dict[str, Said]:
        """To nano's questions alone, to the same asked again, and without an end."""
        asked = questions(_SEED, count, split="heldout")
        alone, copied, endless = Said(), Said(), Said()
        for question in asked:
            self._say(question, alone)
        for prompt in _repeated(self._tokenizer, asked, self._session.window - 200):
            self._compare(prompt, self._tokenizer.eos_ids, _REPLY, copied)
            self._compare(prompt, (), _ENDLESS, endless)
        name = f"asked again, {_ENDLESS} tokens without an end"
        return {"held-out questions": alone, "asked again": copied, name: endless}

    def to_copying(self, count: int) -> dict[str, Said]:
        """To so many tasks that copy, by kind and together ("all")."""
        found = {kind: Said() for kind in KINDS}
        for task in copying(_SEED, count, split="heldout"):
            self._say(task, found[task.kind], _COPY)
        return found | {"all": _together(list(found.values()))}

    def _say(self, question: Question, said: Said, limit: int = _REPLY) -> None:
        prompt = _prompt(self._tokenizer, question)
        reply = self._compare(prompt, self._tokenizer.eos_ids, limit, said)
        said.right += self._tokenizer.decode(reply, skip_special_tokens=False) == question.answer

    def _compare(self, prompt: Sequence[int], stop: Sequence[int], limit: int, said: Said) -> list[int]:
        """One reply, plainly and with lookup."""
        session = self._session
        session.reset()
        plain = list(generate(session, prompt, stop, limit))
        session.reset()
        drafts = Counted(Lookup(), session.draft_cost)
        drafted = list(generate(session, prompt, stop, limit, drafts=drafts))
        said.replies += 1
        said.tokens += len(drafted)
        said.drafted += drafts.drafted
        said.accepted += drafts.accepted
        said.missed += drafts.missed
        said.calls += drafts.calls
        for size, calls in (drafts.sizes + Counter({1: drafts.single_steps})).items():
            said.tokens_of_calls[size] = said.tokens_of_calls.get(size, 0) + calls
        if drafted != plain:
            said.different += 1
            margin = self._margin(prompt, plain, drafted)
            said.close_calls += margin < self._tie
            said.margins.append(round(margin, 6))
        return drafted

    def _margin(self, prompt: Sequence[int], plain: Sequence[int], drafted: Sequence[int]) -> float:
        """How far the two likeliest tokens are apart where two texts part, relative to the largest logit."""
        at = next((n for n, pair in enumerate(zip(plain, drafted, strict=False)) if pair[0] != pair[1]), len(plain))
        self._session.reset()
        logits = self._session.prefill([*prompt, *plain[:at]])
        first, second = np.sort(logits)[::-1][:2]
        return float((first - second) / np.abs(logits).max())


def _together(parts: Sequence[Said]) -> Said:
    sizes = sum((Counter(part.tokens_of_calls) for part in parts), Counter[int]())
    margins = [margin for part in parts for margin in part.margins]
    counts = ("replies", "right", "tokens", "calls", "drafted", "accepted", "missed", "different", "close_calls")
    sums = {name: sum(getattr(part, name) for part in parts) for name in counts}
    return Said(**sums, tokens_of_calls=dict(sizes), margins=margins)


def _prompt(tokenizer: ChatTokenizer, question: Question) -> list[int]:
    return tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))


def _repeated(tokenizer: ChatTokenizer, asked: Sequence[Question], room: int) -> Iterator[list[int]]:
    """Conversations in which some questions are answered, and then each of them is asked once more."""
    plain = [question for question in asked if not question.tools and len(question.messages) == 1]
    for start in range(0, len(plain), _TOGETHER):
        some = plain[start : start + _TOGETHER]
        answered = [m for q in some for m in (*q.messages, {"role": "assistant", "content": q.answer})]
        for question in some:
            prompt = tokenizer.encode(tokenizer.render([*answered, *question.messages]))
            if len(prompt) < room:
                yield prompt
