"""Measuring a reply with drafts beside the same one without, for `bench --draft`."""

from __future__ import annotations

import random
import time

from lfm2_export.artifact.folder import Artifact
from lfm2_export.bench.drafted import Drafted
from lfm2_export.chat.drafts import Drafts
from lfm2_export.chat.generation import generate
from lfm2_export.chat.open_drafts import draft_source
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.runtimes.session import Session

_SEED = 2026
_PROMPT, _REPLY = 96, 128  # tokens: the prompt is said one and a half times


def drafted(given: str, session: Session, artifact: Artifact, threads: int) -> Drafted:
    """Measure a session with drafts from `given` (see `draft_source`). UsageError where it cannot have them."""
    manifest = artifact.manifest
    config = from_dict(manifest.source.config, "manifest.json")
    tokenizer = ChatTokenizer.load(artifact.folder, config) if manifest.chat else None
    length = min(_PROMPT, manifest.window // 3)
    said = _chats(tokenizer, length) if tokenizer is not None else _random(config.vocab_size, length)
    prompt = [*said, *said[: length // 2]]
    drafts = Drafts(draft_source(given, session, artifact, threads), session.draft_cost)
    _reply(session, prompt, Drafts(drafts.source, session.draft_cost))  # the first `verify` loads its method
    plain_seconds, plain = _reply(session, prompt, None)
    seconds, reply = _reply(session, prompt, drafts)
    return Drafted(
        source=given,
        text="random ids" if tokenizer is None else "chats",
        tokens=len(reply),
        seconds=seconds,
        plain_seconds=plain_seconds,
        drafted=drafts.drafted,
        accepted=drafts.accepted,
        same_text=reply == plain,
    )


def _chats(tokenizer: ChatTokenizer, length: int) -> list[int]:
    asked = questions(_SEED, length, split="heldout")
    chats = ([*each.messages, {"role": "assistant", "content": each.answer}] for each in asked if not each.tools)
    return [token for chat in chats for token in tokenizer.encode(tokenizer.render(chat))][:length]


def _random(vocab: int, length: int) -> list[int]:
    draw = random.Random(_SEED)
    return [draw.randrange(vocab) for _ in range(length)]


def _reply(session: Session, prompt: list[int], drafts: Drafts | None) -> tuple[float, list[int]]:
    session.reset()
    reply = generate(session, prompt, (), _REPLY, drafts=drafts)
    tokens = [next(reply)]  # behind the prompt
    start = time.perf_counter()
    tokens += reply
    return time.perf_counter() - start, tokens
