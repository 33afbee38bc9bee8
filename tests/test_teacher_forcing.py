"""An artifact's rows on text are the same whether its tokens are decoded or verified as drafts."""

from __future__ import annotations

import numpy as np
import pytest

from lfm2_export.evaluate.exact import Reading, read_exactly
from lfm2_export.evaluate.teacher_forcing import rows_of
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.runtimes.eager import EagerSession


@pytest.mark.parametrize("most", [1, 5, 16, 100])
def test_drafts_have_the_rows_of_decode_steps(most: int) -> None:
    nano = open_checkpoint("nano")
    sequences = [tuple(np.random.default_rng(count).integers(0, 900, count).tolist()) for count in (50, 2, 17)]
    (exact,) = read_exactly(nano, [Reading(sequences)])
    decoder = load_decoder(nano)
    decoder.embed_tokens.weight.data *= 1 + 0.05 * np.sin(np.arange(decoder.config.hidden_size)).astype(np.float32)
    decoded, verified = EagerSession(decoder, 64), EagerSession(decoder, 64)
    decoded.verifies, verified.verifies = 0, most
    for ours, theirs in zip(rows_of(verified, exact, sequences), rows_of(decoded, exact, sequences), strict=True):
        assert len(ours) == 50 + 2 + 17 - 3
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=1e-4)
    assert rows_of(verified, exact, sequences).kld.mean() > 1e-3
