"""What tests of the qnn target share: small recipes, windows, and whether Qualcomm's libraries are there."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from decoders import tokens

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Manifest, Source
from lfm2_export.checkpoint.config import LFM2Config, to_dict
from lfm2_export.errors import MissingDependencyError
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.qualcomm import sdk
from lfm2_export.recipes import Recipe

WINDOW, CHUNK = 48, 8
WINDOWS: TokenSequences = tuple(tuple(tokens(24, seed)) for seed in range(4))


def installed() -> str | None:
    """Return why Qualcomm's libraries cannot be used, or None."""
    try:
        sdk.version()
    except MissingDependencyError as error:
        return str(error)
    return None


MISSING = installed()
needs_qnn = pytest.mark.skipif(MISSING is not None and "CI" not in os.environ, reason=str(MISSING))


def recipe(name: str = "qnn-16a8w", changes: dict[str, Any] | None = None, **options: Any) -> Recipe:
    settings = {"prefill_chunk": CHUNK, "weight_sharing": False} | options
    wanted: dict[str, Any] = {f"options.{key}": value for key, value in settings.items()} | {"window": WINDOW}
    wanted |= {"calibration.tokens": 32} if name != "qnn-fp16" else {}
    wanted |= {"quantization.2.weight.group": 32} if name == "qnn-16a4w" else {}  # 160 inputs have no groups of 64
    return recipes.load(name, [f"{key}={json.dumps(value)}" for key, value in (wanted | (changes or {})).items()])


def manifest(made_by: Recipe, shape: LFM2Config, **changes: Any) -> Manifest:
    source = Source(name="tiny", weights_sha256="0" * 64, config=to_dict(shape))
    facts: dict[str, Any] = {"files": {}, "source": source, "recipe": {}, "target": "qnn", "form": "explicit"}
    facts |= {"window": WINDOW, "chat": False, "quantization": {}}
    return Manifest(**(facts | changes))


def traced_in(node: Any) -> str:
    """Return the path of the module that a node of a program comes from."""
    return list(node.meta["nn_module_stack"].values())[-1][0]
