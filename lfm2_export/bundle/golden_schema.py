"""`golden.json` as a schema, and what must hold of it for an app to replay it."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfm2_export.artifact.strict_json import parse_json
from lfm2_export.errors import BundleError, field_error

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Step(_Strict):
    """The logits after one call: the largest, best first, and the largest magnitude of all."""

    top: list[int] = Field(min_length=1)
    logits: list[Finite]
    scale: Finite = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # over all logits as little-endian float32


class Case(_Strict):
    """A chat, its prompt as tokens, the greedy reply as text, and what was known at every step."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    prompt: list[int] = Field(min_length=1)
    reply: str
    steps: list[Step] = Field(min_length=1)


class Golden(_Strict):
    runtime: str
    max_error: Finite = Field(gt=0)  # of a logit, relative to its step's scale
    digest: str  # what the steps' sha256 are good for
    cases: list[Case] = Field(min_length=1)


def check_golden(data: bytes, where: str, vocab: int, window: int, max_error: float) -> Golden:
    """Raises ArtifactError or BundleError, one line, for cases that the model described could not have answered."""
    try:
        golden = Golden.model_validate(parse_json(data, where))
    except ValidationError as error:
        raise BundleError(f"{where}: {field_error(error)}") from error
    if golden.max_error != max_error:
        raise BundleError(f"{where}: max_error {golden.max_error}, the recipe's gate is {max_error}")
    for number, case in enumerate(golden.cases):
        if (why := _impossible(case, vocab, window)) is not None:
            raise BundleError(f"{where}: case {number}: {why}")
    return golden


def _impossible(case: Case, vocab: int, window: int) -> str | None:
    if any(not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str) for m in case.messages):
        return "a message without role or content"
    if len(case.prompt) + len(case.steps) - 1 > window:
        return f"{len(case.prompt)} tokens and {len(case.steps)} steps exceed the window of {window}"
    ids = [*case.prompt, *(token for step in case.steps for token in step.top)]
    if any(not 0 <= token < vocab for token in ids):
        return f"token ids outside the vocabulary of {vocab}"
    for step in case.steps:
        if len(set(step.top)) != len(step.top) or len(step.logits) != len(step.top):
            return "a step's largest logits are not one for each of its tokens"
        if step.logits != sorted(step.logits, reverse=True) or math.fabs(step.logits[0]) > step.scale:
            return "a step's logits are not the largest ones, best first"
    return None
