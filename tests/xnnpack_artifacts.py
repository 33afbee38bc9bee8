"""XNNPACK artifacts of small random models, beside the very decoder that each was lowered from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import pytest
from decoders import random_decoder
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header

from lfm2_export import recipes
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.apply import quantize
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.executorch import RUNTIME
from lfm2_export.runtimes.session import Session
from lfm2_export.targets import Lowered
from lfm2_export.targets.xnnpack import methods
from lfm2_export.targets.xnnpack import target as xnnpack

WINDOW, MAX_TOKENS = 40, 16
FP32_ERROR = 2e-5  # measured 1e-6 to 5e-6
FLIP_ERROR = 0.15  # int8 activations rounded the other way; measured up to 0.04 on these narrow random models


def recipe(name: str = "xnnpack-fp32", **changes: Any) -> Recipe:
    defaults = {"window": WINDOW, "options": {"max_tokens": MAX_TOKENS}}
    return recipes.load(name).model_copy(update=defaults | changes)


class Made(NamedTuple):
    """An artifact and the very decoder (quantized, eager) that it was lowered from."""

    decoder: Decoder
    folder: Path
    lowered: Lowered
    recipe: Recipe

    @property
    def path(self) -> Path:
        return self.folder / methods.FILE

    def session(self) -> Session:
        return RUNTIME.open_session(self.folder, self.manifest())

    def eager(self) -> EagerSession:
        return EagerSession(self.decoder, self.recipe.window)

    def manifest(self) -> Manifest:
        """As much of a manifest as a session reads."""
        source = SimpleNamespace(config={"vocab_size": self.decoder.config.vocab_size})
        fields = {"target": "xnnpack", "form": self.recipe.form, "window": self.recipe.window, "source": source}
        return Manifest.model_construct(methods=self.lowered.methods, speculation=self.lowered.speculation, **fields)


def lower(made_by: Recipe, folder: Path, **shape: Any) -> Made:
    """A random model of that shape, quantized and lowered as the recipe says."""
    decoder = random_decoder(**shape)
    xnnpack.TARGET.check(made_by, decoder.config)
    quantize(decoder, made_by.quantization, made_by.cache)
    return Made(decoder, folder, xnnpack.TARGET.lower(decoder, made_by, folder, lambda _: None), made_by)


class Make(Protocol):
    def __call__(self, name: str = ..., changes: dict[str, Any] | None = ..., **shape: Any) -> Made: ...


class Maker:
    """`make("xnnpack-int8", {"form": "resident"}, conv_L_cache=5)`, each combination lowered once, only to be read."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._done: dict[str, Made] = {}

    def __call__(self, name: str = "xnnpack-fp32", changes: dict[str, Any] | None = None, **shape: Any) -> Made:
        key = f"{name} {changes} {sorted(shape.items())}"
        if key not in self._done:
            folder = self._folders.mktemp("artifact")
            self._done[key] = lower(recipe(name, **(changes or {})), folder, **shape)
        return self._done[key]


def program(path: Path) -> Any:
    """The flatbuffer of a `.pte`, as the exporter's dataclasses."""
    data = path.read_bytes()
    header = _get_extended_header(data[: _ExtendedHeader.NUM_HEAD_BYTES])
    assert header is not None
    return _flatbuffer_to_program(data[: header.program_size])
