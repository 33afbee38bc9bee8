"""A model of LFM2's true proportions, but for its width, through both main targets: 16 layers, vocabulary 65,536.

Depth, head_dim, layer pattern and vocabulary are those of the 350M; hidden size and MLP are kept narrow, and the
weights are random. What only shows there: errors that grow with depth, tables of a large vocabulary, external data.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from artifacts import open_session

from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import SIZES, init_checkpoint
from lfm2_export.parity.cases import lowering_cases, random_ids
from lfm2_export.parity.laws import LawContext, OtherForm, state_laws
from lfm2_export.parity.lowering import allowed_error, compare
from lfm2_export.parity.noise import noise_floor
from lfm2_export.parity.reference import quantized_model
from lfm2_export.parity.truth import EagerTruth
from lfm2_export.pipeline import export
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe

NARROW = replace(SIZES["350m"], hidden_size=256, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proportions") / "checkpoint"
    init_checkpoint(NARROW, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["xnnpack-int4", "onnx-int4"])
def test_it_equals_eager_and_keeps_the_laws(recipe: str, checkpoint: Path, tmp_path: Path) -> None:
    assert (NARROW.num_hidden_layers, NARROW.head_dim, NARROW.vocab_size) == (16, 64, 65536)
    artifact, _ = export(str(checkpoint), recipe, tmp_path / recipe, overrides=["window=256"], verify=False)
    session = open_session(artifact)
    decoder = unpack(quantized_model(artifact, open_checkpoint(str(checkpoint))))
    ids = random_ids(NARROW, 80, seed=1)
    cases = lowering_cases(NARROW, artifact.manifest.window, ids, session.pads)
    truth = EagerTruth(decoder, artifact.manifest.window, cases)
    floor = noise_floor(truth, cases)
    tolerance = allowed_error(Recipe.model_validate(artifact.manifest.recipe).gates.lowering, floor)
    found = compare(session, truth, cases, tolerance, floor)
    assert found.max_error <= tolerance
    assert found.rms_error <= 1.5 * floor.rms_error
    assert found.top1 in (1.0, None)
    laws = list(state_laws(LawContext(session, NARROW, ids[:48], tolerance, OtherForm(None, "not made here"))))
    broken = [law for law in laws if law.reason is None and not law.passed]
    assert broken == []
    assert {law.name for law in laws if law.passed} >= {"reset", "chunked prefill", "window edge", "snapshot"}
    assert np.isfinite(session.decode(0)).all()
