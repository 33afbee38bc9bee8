"""A chat over a session: the template rendered, only what is new fed, the reply streamed as text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.generation import Sampler, generate, greedy
from lfm2_export.runtimes.session import Session

Message = dict[str, Any]


@dataclass
class Speed:
    """Of the last reply. The first token's time is the prefill's."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    def line(self) -> str:
        """For people: `prefill 31 tokens at 812 tok/s, decode 12 tokens at 402 tok/s`."""
        prefill = self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0
        decode = self.new_tokens / self.new_seconds if self.new_seconds else 0.0
        return (
            f"prefill {self.prompt_tokens} tokens at {prefill:.0f} tok/s, "
            f"decode {self.new_tokens} tokens at {decode:.0f} tok/s"
        )


@dataclass
class Conversation:
    """Turns so far and what of them the session has already seen."""

    session: Session
    tokenizer: ChatTokenizer
    messages: list[Message] = field(default_factory=list)
    tools: list[Any] | None = None
    sampler: Sampler = greedy
    speed: Speed = field(default_factory=Speed)
    _fed: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Start over; a system message stays."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._fed = []
        self.session.reset()

    def reply(self, text: str, limit: int) -> Iterator[str]:
        """Say `text` as the user and stream the answer, at most `limit` tokens. WindowExceededError when full."""
        self.messages.append({"role": "user", "content": text})
        prompt = self._unseen(self.tokenizer.encode(self.tokenizer.render(self.messages, tools=self.tools)))
        stream, answer = self.tokenizer.stream(), []
        start = time.perf_counter()
        self.speed = Speed(prompt_tokens=len(prompt))
        for token in generate(self.session, prompt, self.tokenizer.eos_ids, limit, self.sampler):
            if not self.speed.prompt_seconds:
                self.speed.prompt_seconds = time.perf_counter() - start
            self.speed.new_tokens += 1
            self._fed.append(token)
            if piece := stream.step(token):
                answer.append(piece)
                yield piece
        self.speed.new_seconds = time.perf_counter() - start - self.speed.prompt_seconds
        self.messages.append({"role": "assistant", "content": "".join(answer)})

    def _unseen(self, wanted: list[int]) -> list[int]:
        """The tokens to feed: what follows the session's past if it is a prefix, else everything anew."""
        if not (self._fed and wanted[: len(self._fed)] == self._fed and self.session.position == len(self._fed)):
            self.session.reset()
            self._fed = []
        new = wanted[len(self._fed) :]
        self._fed = list(wanted)
        return new
