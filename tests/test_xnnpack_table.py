"""XNNPACK's table against the trace: what it lacks is refused, what it has lowers layers that nobody foresaw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import SHAPES, config, worst
from torch import Tensor, nn
from xnnpack_artifacts import FP32_ERROR, Make, recipe

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import RecipeError
from lfm2_export.graph.cut import Call, cut
from lfm2_export.graph.steps import STATE, Network, Step
from lfm2_export.graph.trace import trace
from lfm2_export.model import operators
from lfm2_export.model.block import LAYERS
from lfm2_export.model.decoder import skeleton
from lfm2_export.model.layers import HeadNorm
from lfm2_export.model.mixer import Mixer
from lfm2_export.pipeline import export
from lfm2_export.targets.xnnpack.border import native_shapes, ordered
from lfm2_export.targets.xnnpack.passes import Given, with_heads_apart
from lfm2_export.targets.xnnpack.table import TABLE, Split, hosts
from lfm2_export.targets.xnnpack.target import TARGET

KINDS = trace(config(), padded=False).kinds()


def given(shape: LFM2Config) -> Given:
    return Given(skeleton(shape), {STATE + name: native for name, native in native_shapes(shape, 1).items()})


class TestEntries:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_step_without_an_entry_is_refused_by_kind_and_path(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        TARGET.check(recipe(), config())
        monkeypatch.delitem(TABLE, kind)
        with pytest.raises(RecipeError, match=f"'{kind}'.*{KINDS[kind].path}"):
            TARGET.check(recipe(), config())

    def test_before_a_weight_is_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.setattr(Checkpoint, "tensors", lambda self: pytest.fail("a weight was read"))
        monkeypatch.delitem(TABLE, "short_conv")
        with pytest.raises(RecipeError, match="short_conv"):
            export("nano", "xnnpack-int8", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_model_that_lacks_the_operator_needs_no_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(TABLE, "attention")
        TARGET.check(recipe(), config(**SHAPES["conv only"]))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_step_that_a_rewrite_makes_can_be_written(self, shape: str) -> None:
        small = config(**SHAPES[shape])
        assert not [step for step in TARGET.network(small).steps if isinstance(TABLE[step.kind], Split)]


class TestOrder:
    def plan(self) -> list[Step | Call]:
        network = TARGET.network(config())
        return ordered(network, cut(network, hosts()))

    def test_calls_take_activations_then_angles_then_states(self) -> None:
        first, second, *_ = (part for part in self.plan() if isinstance(part, Call))
        states = ("state.conv_state.0", "state.conv_state.1")
        assert first.inputs == ("embed_tokens", "offsets", "seen", *states)
        residual, mixed, *angles, state = second.inputs
        assert (residual, state) == (first.outputs[-1], "state.conv_state.3")
        assert mixed in next(part for part in self.plan() if isinstance(part, Step) and part.kind == "attend").outputs
        assert tuple(angles) == first.outputs[:2]

    def test_caches_are_no_result_and_conv_states_are(self) -> None:
        network = TARGET.network(config())
        assert list(network.state) == [name for name in native_shapes(config(), 1) if name.startswith("conv_state")]


class TestHeads:
    def network(self) -> Network:
        """Heads of 16 that one step turns and another, which knows no heads, reads."""
        steps = (
            Step("angles", "", ("offsets", "seen"), ("cos", "sin"), (16, 1e4)),
            Step("angles", "", ("offsets", "seen"), ("wide_cos", "wide_sin"), (32, 1e4)),
            Step("linear", "layers.0.conv.b_proj", ("x",), ("q",)),
            Step("rotate", "", ("q", "cos", "sin"), ("turned",)),
            Step("rotate", "", ("turned", "wide_cos", "wide_sin"), ("again",)),
            Step("add", "", ("again", "q"), ("sum",)),
        )
        return Network(steps, "sum", {})

    def test_each_reader_gets_the_heads_it_asks_for_right_behind_their_maker(self) -> None:
        steps = with_heads_apart(given(config()), self.network()).steps
        shown = [(step.kind, step.inputs[0], step.outputs[0], step.arguments) for step in steps[2:]]
        assert shown == [
            ("linear", "x", "q", ()),
            ("heads", "q", "q/heads_16", (16,)),
            ("rotate", "q/heads_16", "turned", ()),
            ("heads", "turned", "turned/heads_32", (32,)),
            ("rotate", "turned/heads_32", "again", ()),
            ("rows", "again", "again/rows", ()),
            ("add", "again/rows", "sum", ()),
        ]
        assert steps[-1].inputs == ("again/rows", "q")


class GatedAttention(Mixer):
    """A layer kind that no released LFM2 has: heads and angles of its own, a norm behind attention, a gate."""

    attribute = "gated"
    HEADS, KV_HEADS, WIDTH, THETA = 3, 1, 24, 500.0

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        hidden, width = config.hidden_size, self.HEADS * self.WIDTH
        self.query = nn.Linear(hidden, width)
        self.key_value = nn.Linear(hidden, self.KV_HEADS * self.WIDTH, bias=False)
        self.gate = nn.Linear(hidden, width, bias=False)
        self.norm = HeadNorm(self.WIDTH // 2, config.norm_eps)
        self.out = nn.Linear(width, hidden, bias=False)

    @classmethod
    def state_shapes(cls, config: LFM2Config, window: int) -> dict[str, tuple[int, ...]]:
        return {"wide_key": (cls.KV_HEADS, window, cls.WIDTH), "wide_value": (cls.KV_HEADS, window, cls.WIDTH)}

    def forward(self, x: Tensor, state: tuple[Tensor, ...], call: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        cos, sin = operators.rotary(x, call.position, self.WIDTH, self.THETA, self.WIDTH // 2)
        shared = self.key_value(x)
        query, key = (operators.rotate(each, cos, sin) for each in (self.query(x), shared))
        mixed, key, value = operators.attention(query, key, shared, *state, call.position, torch.float32)
        return self.out(self.norm(mixed) * torch.nn.functional.silu(self.gate(x))), (key, value)


@pytest.mark.parametrize(
    "layers",
    [("conv", "gated", "full_attention", "conv"), ("gated",), ("full_attention", "gated", "gated")],
    ids=str,
)
@pytest.mark.parametrize("chunks", [[17], [1, 2, 9, 1, 4]], ids=str)
def test_a_new_kind_of_layer_made_of_known_operators_needs_nothing_here(
    make: Make, monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...], chunks: list[int]
) -> None:
    monkeypatch.setitem(LAYERS, "gated", GatedAttention)
    made = make(layer_types=layers)
    assert worst(made.session(), made.eager(), chunks) < FP32_ERROR
