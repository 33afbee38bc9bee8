"""The ONNX graph called as genai and transformers.js do: rows of different lengths, a cache that grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import random_decoder, relative, tokens
from onnx_artifacts import FP32_ERROR, WINDOW, batch_feeds, lower, pair, recipe

from lfm2_export.model.state import empty_state, write_slices


class TestBatch:
    """Straight through InferenceSession: rows of different lengths, then decoding at different positions."""

    @pytest.mark.parametrize("width", [2, 3, 5])
    def test_rows_of_different_lengths(self, tmp_path: Path, width: int) -> None:
        decoder = random_decoder(conv_L_cache=width)
        session, _ = pair(decoder, tmp_path)
        outputs = [spec.name for spec in lower(decoder, recipe(), tmp_path).methods[0].outputs]
        lengths, positions = [3, 8, 1], [0, 0, 0]
        ids = np.array([tokens(8, seed) for seed in range(3)])
        state = empty_state(decoder.config, WINDOW, 3)
        feeds = batch_feeds(decoder.config, ids, positions, lengths)
        for _ in range(4):
            found = dict(zip(outputs, session._session.run(outputs, feeds), strict=True))
            position, length = torch.tensor(positions), torch.tensor(lengths)
            with torch.no_grad():
                logits, new = decoder(torch.from_numpy(ids), position, length, state)
            write_slices(state, new, position, length)
            assert relative(found["logits"][:, 0], logits.numpy()) < FP32_ERROR
            for row, filled in enumerate((position + length).tolist()):
                for name, tensor in state.items():
                    kind, layer = name.split(".")
                    if kind == "conv_state":
                        columns = found[f"present_conv.{layer}"][row, :, 1:]
                        assert relative(columns, tensor[row].numpy()) < FP32_ERROR
                    else:
                        columns = found[f"present.{layer}.{kind}"][row, :, :filled]
                        assert relative(columns, tensor[row, :, :filled].numpy()) < FP32_ERROR
            positions = (position + length).tolist()
            lengths, ids = [1, 1, 1], np.array([[5], [6], [7]])
            feeds = batch_feeds(decoder.config, ids, positions, lengths)
            for name, tensor in found.items():
                if name.startswith("present"):
                    past = name.replace("present_conv", "past_conv").replace("present.", "past_key_values.")
                    feeds[past] = tensor

    def test_growing_cache(self, tmp_path: Path) -> None:
        """transformers.js shares no buffer: an empty past at first, then what the last call returned."""
        decoder = random_decoder()
        session, eager = pair(decoder, tmp_path)
        outputs = [spec.name for spec in lower(decoder, recipe(), tmp_path).methods[0].outputs]
        past: dict[str, np.ndarray] = {}
        for chunk in (tokens(5), [3], tokens(4), [9]):
            feeds = batch_feeds(decoder.config, np.array([chunk]), [eager.position], [len(chunk)])
            feeds = {n: t[:, :, :0] if n.startswith("past_key") else t for n, t in feeds.items()} | past
            found = dict(zip(outputs, session._session.run(outputs, feeds), strict=True))
            assert relative(found["logits"][0, 0], eager.prefill(chunk)) < FP32_ERROR
            renamed = {n.replace("present_conv", "past_conv").replace("present.", "past_key_values."): n for n in found}
            past = {new: found[old] for new, old in renamed.items() if old != "logits"}
            assert past["past_key_values.2.key"].shape[2] == eager.position
