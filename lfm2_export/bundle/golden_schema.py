"""`golden.json` as a schema, and what must hold of it for an app to replay it."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfm2_export.artifact.strict_json import parse_json
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import BundleError, field_error

_FLOAT = struct.Struct("<f")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Step(_Strict):
    """The logits after one call: the largest, best first, and the largest magnitude of all."""

    top: list[int] = Field(min_length=1)
    logits: list[Finite]
    scale: Finite = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # over all logits as little-endian float32


class Pixels(_Strict):
    """What the image part takes at once: rows and columns of patches; these as little-endian float32, in base64."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    patches: str


class Case(_Strict):
    """A chat, its prompt as tokens, the greedy reply as text, and what was known at every step.

    Of a chat with pictures also these, as PNG in base64, and what was made of them.
    """

    messages: list[dict[str, Any]] = Field(min_length=1)
    prompt: list[int] = Field(min_length=1)
    reply: str
    steps: list[Step] = Field(min_length=1)
    pictures: list[str] = []
    images: list[Pixels] = []


class ToolPrompt(_Strict):
    """A chat with tools and its prompt as tokens, which nobody has answered."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field(min_length=1)
    prompt: list[int] = Field(min_length=1)


class Golden(_Strict):
    runtime: str
    max_error: Finite = Field(gt=0)  # of a logit, relative to its step's scale
    digest: str  # what the steps' sha256 are good for
    cases: list[Case] = Field(min_length=1)
    tool_prompts: list[ToolPrompt] = Field(default_factory=list)  # none where the template takes no tools


def check_golden(
    data: bytes, where: str, vocab: int, window: int, max_error: float, vision: VisionConfig | None = None
) -> Golden:
    """Raises ArtifactError or BundleError, one line, for cases that the model described could not have answered.

    `vision` is its image part.
    """
    try:
        golden = Golden.model_validate(parse_json(data, where))
    except ValidationError as error:
        raise BundleError(f"{where}: {field_error(error)}") from error
    if golden.max_error != max_error:
        raise BundleError(f"{where}: max_error {golden.max_error}, the recipe's gate is {max_error}")
    for number, case in enumerate(golden.cases):
        why = _impossible(case, vocab, window) or _impossible_pictures(case, vision)
        if why is not None:
            raise BundleError(f"{where}: case {number}: {why}")
    for number, each in enumerate(golden.tool_prompts):
        if (why := _impossible_prompt(each, vocab)) is not None:
            raise BundleError(f"{where}: tool prompt {number}: {why}")
    return golden


def _impossible_prompt(chat: Case | ToolPrompt, vocab: int) -> str | None:
    if any(not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str | list) for m in chat.messages):
        return "a message without role or content"
    if any(not 0 <= token < vocab for token in chat.prompt):
        return f"token ids outside the vocabulary of {vocab}"
    return None


def _impossible(case: Case, vocab: int, window: int) -> str | None:
    if (why := _impossible_prompt(case, vocab)) is not None:
        return why
    if len(case.prompt) + len(case.steps) - 1 > window:
        return f"{len(case.prompt)} tokens and {len(case.steps)} steps exceed the window of {window}"
    if any(not 0 <= token < vocab for step in case.steps for token in step.top):
        return f"token ids outside the vocabulary of {vocab}"
    for step in case.steps:
        if len(set(step.top)) != len(step.top) or len(step.logits) != len(step.top):
            return "a step's largest logits are not one for each of its tokens"
        if step.logits != sorted(step.logits, reverse=True) or math.fabs(step.logits[0]) > step.scale:
            return "a step's logits are not the largest ones, best first"
    return None


def _impossible_pictures(case: Case, vision: VisionConfig | None) -> str | None:
    parts = [part for m in case.messages if isinstance(m["content"], list) for part in m["content"]]
    shown = sum(isinstance(part, dict) and part.get("type") == "image" for part in parts)
    if parts and not shown:
        return "a message of parts without a picture"
    if shown != len(case.pictures) or bool(shown) != bool(case.images):
        return f"{shown} images in its messages, {len(case.pictures)} pictures, pixels of {len(case.images)}"
    if not shown:
        return None
    if vision is None:
        return "pictures, and the model takes none"
    places = case.prompt.count(vision.image_token_id) * vision.merge**2
    if any(each.rows % vision.merge or each.columns % vision.merge for each in case.images):
        return f"an image whose rows or columns of patches are no multiples of {vision.merge}"
    if (patches := sum(each.rows * each.columns for each in case.images)) != places:
        return f"{patches} patches for a prompt with places for {places}"
    try:
        for picture in case.pictures:
            base64.b64decode(picture, validate=True)
        pixels = [base64.b64decode(each.patches, validate=True) for each in case.images]
    except (binascii.Error, ValueError):
        return "pictures or pixels that are not what base64 gives"
    sizes = [_FLOAT.size * each.rows * each.columns * vision.patch_values for each in case.images]
    if [len(each) for each in pixels] != sizes or not all(map(_finite, pixels)):
        return "pixels that do not fill the patches, or are no numbers"
    return None


def _finite(pixels: bytes) -> bool:
    return all(math.isfinite(value) for (value,) in _FLOAT.iter_unpack(pixels))
