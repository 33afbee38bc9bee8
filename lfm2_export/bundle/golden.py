"""Golden cases: what the artifact answers through its real runtime, for a bundle to prove itself on another machine.

(Where that runtime does not run, its stand-in answers, and is named.) Each is a chat, its prompt as tokens, and the
greedy reply with what was known of the logits at every step: the few largest, the largest magnitude of all, and a
digest of them all. A checker feeds the golden tokens, so one close call that falls the other way does not put the rest
of the reply out of step. It judges by the largest logits; the digest only tells whether another machine computes the
very same bits.

An artifact that takes images has cases with pictures too, drawn here: each with the pixels as its image part takes
them, so that an app need not prepare pictures to replay it, and as PNG, to see whether it prepares them alike.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.nano_vl.drawing import draw, png
from lfm2_export.checkpoint.nano_vl.scenes import Scene, Thing
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.checkpoint.vision_config import read_model_config
from lfm2_export.errors import CheckpointError
from lfm2_export.images.pictures import with_pictures
from lfm2_export.images.viewing import Tile, Viewer
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
_STAR = Scene(2, 2, (Thing("star", "red", 0), Thing("circle", "blue", 3)), seed=1)
_NUMBER = Scene(3, 3, (Thing("4", "black", 3), Thing("2", "black", 4)), seed=2)
_SHOWN = (
    ((_STAR,), "What color is the star?"),
    ((_STAR, _NUMBER), "What digits do you see?"),
)
_TOOL = {
    "name": "get_weather",
    "description": "The weather now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_TOOL_CHATS = (  # only written: whoever writes prompts without Jinja learns whether it does as the template does
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it warm in Rome?"}],
    [
        {"role": "user", "content": "Is it warm in Rome?"},
        {"role": "assistant", "content": '<|tool_call_start|>[get_weather(city="Rome")]<|tool_call_end|>'},
        {"role": "tool", "content": '{"celsius": 31}'},
    ],
)
_STEPS = 24  # longest reply
_LARGEST = 8  # logits kept of each step
_DIGEST = "sha256 of each step's logits as little-endian float32; informative: equal only on the same kernels"


def golden_cases(artifact: Artifact, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """A JSON document: the runtime that answered, the error allowed (relative to `scale`), cases, tool prompts."""
    manifest = artifact.manifest
    session = runtimes.answering(manifest).open_session(artifact.folder, manifest)
    return {
        "runtime": f"{session.runtime} {session.version}",
        "max_error": Recipe.model_validate(manifest.recipe).gates.lowering.max_error,
        "digest": _DIGEST,
        "cases": [
            *(_case(session, tokenizer, messages, tokenizer.render(messages)) for messages in _CHATS),
            *(_cases_with_pictures(artifact, session, tokenizer) if manifest.takes_images else ()),
        ],
        "tool_prompts": _tool_prompts(tokenizer),
    }


def _tool_prompts(tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Chats with a tool as the template writes them, as tokens; none where the template takes no tools."""
    try:
        return [
            {"messages": chat, "tools": [_TOOL], "prompt": tokenizer.encode(tokenizer.render(chat, tools=[_TOOL]))}
            for chat in _TOOL_CHATS
        ]
    except CheckpointError:
        return []


def _cases_with_pictures(artifact: Artifact, session: Session, tokenizer: ChatTokenizer) -> Iterator[dict[str, Any]]:
    vision = read_model_config(artifact.folder / "config.json").vision
    assert vision is not None  # of an artifact that takes images
    viewer = Viewer(artifact.folder, vision, session)
    for scenes, question in _SHOWN:
        images = [draw(scene) for scene in scenes]
        texts, parts = zip(*(viewer.prepare(image, "a drawn picture") for image in images), strict=True)
        tiles = [tile for part in parts for tile in part]
        content = [*({"type": "image"} for _ in scenes), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        prompt = with_pictures(tokenizer.render(messages), texts, viewer.processor.token.text)
        yield _case(session, tokenizer, messages, prompt, tiles) | {
            "pictures": [png(image) for image in images],
            "images": [_pixels(tile) for tile in tiles],
        }


def _pixels(tile: Tile) -> dict[str, Any]:
    patches = base64.b64encode(np.ascontiguousarray(tile.patches, "<f4").tobytes()).decode()
    return {"rows": tile.rows, "columns": tile.columns, "patches": patches}


def _case(
    session: Session, tokenizer: ChatTokenizer, messages: list[dict[str, Any]], text: str, tiles: Sequence[Tile] = ()
) -> dict[str, Any]:
    """One case; `text` is what the messages are as a prompt."""
    prompt = tokenizer.encode(text)
    session.reset()
    if tiles:
        logits = session.prefill_with_images(prompt, np.concatenate([session.encode(*tile) for tile in tiles]))
    else:
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
