"""Golden cases: what the artifact answers through its real runtime, for a bundle to prove itself on another machine.

(Where that runtime does not run, its stand-in answers, and is named.) Each is a chat, its prompt as tokens, and the
greedy reply with what was known of the logits at every step: the few largest, the largest magnitude of all, and a
digest of them all. A checker feeds the golden tokens, so one close call that falls the other way does not put the rest
of the reply out of step. It judges by the largest logits; the digest only tells whether another machine computes the
very same bits.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.session import Session

_CHATS = (
    [{"role": "user", "content": "What color is the sky?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Nice to meet you, Anna."},
        {"role": "user", "content": "What is my name?"},
    ],
)
_STEPS = 24  # longest reply
_LARGEST = 8  # logits kept of each step
_DIGEST = "sha256 of each step's logits as little-endian float32; informative: equal only on the same kernels"


def golden_cases(artifact: Artifact, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """A JSON document: the runtime that answered, the error allowed (relative to `scale`), and the cases."""
    manifest = artifact.manifest
    session = runtimes.answering(manifest).open_session(artifact.folder, manifest)
    return {
        "runtime": f"{session.runtime} {session.version}",
        "max_error": Recipe.model_validate(manifest.recipe).gates.lowering.max_error,
        "digest": _DIGEST,
        "cases": [_case(session, tokenizer, messages) for messages in _CHATS],
    }


def _case(session: Session, tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> dict[str, Any]:
    prompt = tokenizer.encode(tokenizer.render(messages))
    session.reset()
    logits = session.prefill(prompt)
    steps = [_step(logits)]
    while len(steps) < _STEPS and session.position < session.window and steps[-1]["top"][0] not in tokenizer.eos_ids:
        logits = session.decode(steps[-1]["top"][0])
        steps.append(_step(logits))
    reply = [step["top"][0] for step in steps if step["top"][0] not in tokenizer.eos_ids]
    return {"messages": messages, "prompt": prompt, "reply": tokenizer.decode(reply, False), "steps": steps}


def _step(logits: np.ndarray) -> dict[str, Any]:
    """The largest logits, best first and of equals the lowest id, as greedy decoding would choose."""
    largest = np.argsort(-logits, kind="stable")[:_LARGEST]
    return {
        "top": [int(token) for token in largest],
        "logits": [round(float(logits[token]), 7) for token in largest],
        "scale": round(float(np.abs(logits).max()), 7),
        "sha256": hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest(),
    }
