"""The XNNPACK target and the ExecuTorch sessions against eager PyTorch: numbers, state laws, long windows."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from decoders import CHUNKS, SHAPES, VOCAB, relative, state_error, tokens, worst
from xnnpack_artifacts import FP32_ERROR, MAX_TOKENS, WINDOW, Make, program

from lfm2_export.errors import UsageError, WindowExceededError
from lfm2_export.model.state import is_cache
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Snapshot

LAST_POSITION_ERROR = 2e-5


class TestFloat:
    @pytest.mark.parametrize("chunks", [*CHUNKS, [MAX_TOKENS], [WINDOW - 1], [17, 23]], ids=str)
    def test_equals_eager_for_any_split(self, make: Make, chunks: list[int]) -> None:
        made = make()
        assert worst(made.session(), made.eager(), chunks) < FP32_ERROR

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    def test_equals_eager_for_any_shape(self, make: Make, shape: dict[str, Any]) -> None:
        made = make(**shape)
        assert worst(made.session(), made.eager(), [1, 2, 9, 1, 1, 4]) < FP32_ERROR

    def test_planted_fault_is_seen(self, make: Make) -> None:
        """One weight of the eager model altered after lowering: the comparison must tell."""
        made = make()
        altered = copy.deepcopy(made.decoder)
        with torch.no_grad():
            altered.layers[3].conv.out_proj.weight[5, 7] += 1.0
        assert worst(made.session(), EagerSession(altered, WINDOW), [9, 1]) > 100 * FP32_ERROR


class TestLaws:
    def test_reset_is_bit_for_bit_a_new_conversation(self, make: Make) -> None:
        session = make().session()
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        assert session.position == 0
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_snapshot_goes_on_exactly_here_and_elsewhere(self, make: Make) -> None:
        made = make()
        session, other = made.session(), made.session()
        session.prefill(tokens(6))
        snapshot = session.state()
        kept = copy.deepcopy(snapshot)
        onward = [session.decode(token) for token in tokens(5)]
        assert state_error(snapshot, kept) == 0
        other.prefill(tokens(30, seed=8))
        for resumed in (session, other):
            resumed.restore(snapshot)
            assert state_error(resumed.state(), snapshot) == 0
            assert all(np.array_equal(a, resumed.decode(t)) for a, t in zip(onward, tokens(5), strict=True))

    def test_eager_and_artifact_exchange_states(self, make: Make) -> None:
        made = make()
        session, eager = made.session(), made.eager()
        eager.prefill(tokens(9))
        session.restore(eager.state())
        assert relative(session.decode(5), eager.decode(5)) < FP32_ERROR

    def test_window_edge_and_one_past_it(self, make: Make) -> None:
        made = make()
        session = made.session()
        assert worst(session, made.eager(), [WINDOW - 1, 1]) < FP32_ERROR
        before = session.state()
        with pytest.raises(WindowExceededError):
            session.decode(1)
        assert state_error(session.state(), before) == 0
        session.reset()
        with pytest.raises(WindowExceededError):
            session.prefill(tokens(WINDOW + 1))
        assert session.position == 0

    def test_padding_is_refused(self, make: Make) -> None:
        session = make().session()
        assert not session.pads
        with pytest.raises(UsageError, match="padding"):
            session.prefill([1, 2], pad_to=4)
        assert session.position == 0

    @pytest.mark.parametrize("chunk", [[], [VOCAB], [-1]], ids=str)
    def test_bad_chunk_is_refused(self, make: Make, chunk: list[int]) -> None:
        session = make().session()
        with pytest.raises(UsageError):
            session.prefill(chunk)
        assert session.position == 0

    def test_logits_outlive_the_next_call(self, make: Make) -> None:
        session = make().session()
        first = session.prefill(tokens(5))
        kept = first.copy()
        session.decode(9)
        assert np.array_equal(first, kept)


class TestGroups:
    @pytest.mark.parametrize("form", ["explicit", "resident"])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 2), (4, 1)])
    def test_one_token_and_several_see_the_same_columns(self, make: Make, heads: int, kv_heads: int, form: str) -> None:
        """A call of one token reads the cache in another way: from the first column on, to the window's edge."""
        shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        made = make("xnnpack-fp32", {"form": form}, **shape)
        assert worst(made.session(), made.eager(), [1, 1, 1, 1, 1, 9, 1, 2, 1, *[1] * (WINDOW - 18)]) < FP32_ERROR


class TestLongWindow:
    WINDOW = 32768

    def test_costs_no_memory_in_the_file_or_the_arena(self, make: Make) -> None:
        short = make("xnnpack-fp32", {"window": 64})
        long = make("xnnpack-fp32", {"window": self.WINDOW}, max_position_embeddings=self.WINDOW)
        layers = len(short.decoder.config.layer_types)
        assert abs(long.path.stat().st_size - short.path.stat().st_size) < 1024 * layers
        arenas = [program(made.path).execution_plan[0].non_const_buffer_sizes for made in (short, long)]
        assert arenas[0] == arenas[1]

    def test_its_last_position_equals_eager(self, make: Make) -> None:
        made = make("xnnpack-fp32", {"window": self.WINDOW}, max_position_embeddings=self.WINDOW)
        session, eager = made.session(), made.eager()
        eager.prefill([5])
        random, position = np.random.default_rng(0), self.WINDOW - 1
        snapshot = Snapshot(
            position,
            {
                name: random.standard_normal((*t.shape[:2], position, t.shape[3]) if is_cache(name) else t.shape, "f4")
                for name, t in eager.state().tensors.items()
            },
        )
        for resumed in (session, eager):
            resumed.restore(snapshot)
        assert relative(session.decode(9), eager.decode(9)) < LAST_POSITION_ERROR
        assert state_error(session.state(), eager.state()) < LAST_POSITION_ERROR
        with pytest.raises(WindowExceededError):
            session.decode(1)
