"""Fixtures of the parity ladder: every artifact is made once per run, from the embedded nano model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache

import pytest
import torch
from artifacts import ARTIFACTS, WINDOW, need_qnn
from filelock import FileLock

from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe

Make = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Make:
    """(recipe, form, more overrides) → an unproven artifact of nano, only to be read: lowered once for all workers."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "artifacts"

    @cache
    def make(recipe: str, form: str, *overrides: str, source: str = "nano") -> Artifact:
        changes = [f"form={form}", f"window={WINDOW}", *overrides]
        place = shared / hashlib.sha256(repr((source, recipe, changes)).encode()).hexdigest()
        place.mkdir(parents=True, exist_ok=True)
        output = place / f"{recipe}-{form}"
        with FileLock(place / "lock"):
            if output.exists():
                return open_artifact(output)
            return export(source, recipe, output, overrides=changes, verify=False)[0]

    return make


@pytest.fixture(params=ARTIFACTS, ids="-".join)
def artifact(request: pytest.FixtureRequest, make_artifact: Make) -> Artifact:
    if request.param[0].startswith("qnn"):
        need_qnn()
    return make_artifact(*request.param)


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    return open_checkpoint("nano")


@pytest.fixture(scope="session")
def quantized_nano(nano: Checkpoint) -> Callable[[Artifact], Decoder]:
    """The eager model that an artifact must equal."""

    @cache
    def make(rules: str) -> Decoder:
        recipe = Recipe.model_validate_json(rules)
        return unpack(quantize(load_decoder(nano), recipe.quantization, recipe.cache))

    return lambda artifact: make(Recipe.model_validate(artifact.manifest.recipe).model_dump_json())
