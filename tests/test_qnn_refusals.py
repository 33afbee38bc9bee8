"""What the qnn target refuses: recipes, chips, steps that it cannot write, nodes that fall off the NPU."""

from __future__ import annotations

import pytest
from decoders import config
from qnn_programs import WINDOW, needs_qnn, recipe

from lfm2_export import recipes
from lfm2_export.errors import LoweringError, RecipeError
from lfm2_export.static_calls import DECODE
from lfm2_export.targets.qnn import target
from lfm2_export.targets.qnn.table import TABLE
from lfm2_export.targets.qnn.target import TARGET


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["form=resident"], "form: resident; .* has explicit"),
        (["options.soc=SM9999"], "options.soc is SM9999; expected one of .*SM8650.*SM8750"),
        (["options.prefill_chunk=1"], "prefill_chunk"),
        (["options.prefill_chunk=4096"], "prefill_chunk"),
        (["options.weight_sharing=3"], "expected one of false, true"),
        (["options.shards=0"], "options.shards is 0; expected 1 to 6"),
        (["options.shards=7"], "options.shards is 7"),
        (["options.speed=3"], "unknown options"),
        (["cache=bfloat16"], "cache: bfloat16; .* has cache: float32"),
        (["quantization.1.activation=int8-token"], "int8-token; with int16 activations throughout"),
        (["quantization.0.weight.bits=8"], "embedding"),
        (["quantization.1.weight.group=32"], "in groups of 32, .* for a product: int8 per row, activation: int16$"),
        (["quantization.1.weight={bits: 4, group: 8}"], "int4 per row or in groups of a multiple of 16"),
        (["quantization.1.weight={bits: 4, group: 32}", "options.soc=SM8350"], r"LPBQ\) need HTP v69, SM8350 has v68"),
        (["quantization.1.weight.bits=16", "options.soc=SM8450"], "16-bit weights need HTP v73, SM8450 has v69"),
    ],
)
def test_impossible_recipes_are_refused(changes: list[str], message: str) -> None:
    wanted = recipes.load("qnn-16a8w", [f"window={WINDOW}", "calibration.tokens=32", *changes])
    with pytest.raises(RecipeError, match=message):
        TARGET.check(wanted, config())


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("short_conv", "layers.0.conv"),
        ("attention", "layers.2.self_attn"),
        ("linear", "layers.0.conv.b_proj"),
        ("last_valid", "last_valid"),
    ],
)
def test_a_step_without_an_entry_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, kind: str, where: str) -> None:
    TARGET.check(recipe(), config())
    monkeypatch.delitem(TABLE, kind)
    with pytest.raises(RecipeError, match=rf"the qnn target cannot write the step '{kind}' \(at {where}\)"):
        TARGET.check(recipe(), config())


@needs_qnn
@pytest.mark.parametrize(
    ("name", "soc", "message"),
    [
        ("qnn-fp16", "SM8350", r"SM8350 \(HTP v68\) has no fp16"),
        ("qnn-16a8w", "SM8350", "no products of two 16-bit activations"),
        ("qnn-16a8w", "SM8450", "no products of two 16-bit activations"),
        ("qnn-fp16", "SM8450", None),
        ("qnn-16a8w", "SM8550", None),
    ],
)
def test_a_chip_that_lacks_the_mode_is_refused(name: str, soc: str, message: str | None) -> None:
    if message is None:
        TARGET.check(recipe(name, soc=soc), config())
        return
    with pytest.raises(RecipeError, match=message):
        TARGET.check(recipe(name, soc=soc), config())


@needs_qnn
def test_a_node_outside_the_npu_fails_the_export_and_is_named() -> None:
    from lfm2_export.artifact.manifest import Delegation

    report = {DECODE: Delegation(backend="QNN", calls=2, delegated=9, fallback={"aten.roll": 2})}
    with pytest.raises(LoweringError, match=r"outside the NPU: aten.roll × 2; --allow-fallback"):
        target._refuse_fallback(report, recipe())
    target._refuse_fallback(report, recipe(allow_fallback=True))
