"""The kernels that phones use: the C++ runner for ARM64, emulated as three processors, and its twin on this machine."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from artifacts import WINDOW

from lfm2_export.errors import MissingDependencyError, UsageError, WindowExceededError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.parity.effort import EMULATED_CPU, Effort
from lfm2_export.parity.prove import prove
from lfm2_export.pipeline import export
from lfm2_export.runtimes import arm64, each_processor, executorch, find, native

# qemu computes floats one by one, many times slower than integers. A recipe in floats is proven by its logits, laws and
# states; it takes little text for quality's gates, of which one token is more than fp16's limit, a hundredth.
IN_FLOATS = replace(EMULATED_CPU, quality_tokens=60, questions=4, case_tokens=24, case_steps=16, name="custom")
# two of the three processors have fp16 arithmetic: 35 ms a token, of fp32 14 and of int8 3; so the window ends sooner
IN_HALF = replace(IN_FLOATS, case_tokens=16, law_tokens=16)
INTEGERS = ["int8", "int4", "int4-small", "int4-mixed"]
EFFORTS = {"fp32": IN_FLOATS, "fp16": IN_HALF} | dict.fromkeys(INTEGERS, EMULATED_CPU)
CHANGES = {"fp16": ("gates.quality.top1=0.97", "window=96")}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """Skips where the runner is not built, unless CI asks for no such skip."""
    try:
        arm64.RUNTIME.version()
    except MissingDependencyError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EFFORTS)
def test_every_recipe_is_proven_natively_and_on_three_arm64_processors(recipe, make_artifact, nano):
    artifact = make_artifact(f"xnnpack-{recipe}", "explicit", *CHANGES.get(recipe, ()))
    report = prove(artifact, nano, only=["native", "arm64"], effort=EFFORTS[recipe])
    assert [gate for gate in report.gates if gate.status == "fail"] == []
    names = ["native", "arm64/cortex-a53", "arm64/cortex-a76", "arm64/max"]
    assert [each.runtime for each in report.runtimes] == names
    for each in report.runtimes:
        assert each.status == "pass"
        assert each.reference == "eager"
        assert each.quality_of == each.runtime  # asked itself, not judged by another
        assert {law.name for law in each.laws if law.error is not None} >= {"reset", "window edge", "snapshot"}
        # here the caches' rounding is eager's own, so most steps agree whatever the recipe, but for fp16 products
        assert each.lowering.median_step < (1e-2 if recipe == "fp16" else 1e-5)
    assert report.runtimes[0].twin is None
    for each in report.runtimes[1:]:
        assert each.twin.runtime == "native"
        gates = {gate.name: gate for gate in each.gates}
        assert gates["native: median step"].status == gates["native: max error"].status == "pass"
        assert gates["native: median step"].limit == (0.015 if recipe == "fp16" else 1e-5)


@pytest.mark.slow
def test_lfm3_is_proven_natively_and_on_arm64(nano, tmp_path):
    own = {"sliding_window": 7, "sliding_rope_theta": 1e4, "use_attention_gate": True, "use_sandwich_norm": True}
    kinds = ("conv", "sliding_attention", "full_attention")
    processor = "arm64/cortex-a76"  # all three took it; the kernels in which they differ are the other tests'
    init_checkpoint(replace(nano.config, model_type="lfm3", layer_types=kinds, rope_factor=0.5, **own), tmp_path / "in")
    checkpoint = open_checkpoint(str(tmp_path / "in"))
    artifact, _ = export(str(tmp_path / "in"), "xnnpack-int8", tmp_path / "out", overrides=["window=64"], verify=False)
    effort = Effort(quality_tokens=60, prompts=1, continuation=4, law_tokens=24, case_tokens=24, case_steps=8)
    report = prove(artifact, checkpoint, only=["native", processor], effort=effort)
    assert [gate for gate in report.gates if gate.status == "fail"] == []
    assert {each.runtime: each.status for each in report.runtimes} == {"native": "pass", processor: "pass"}
    for each in report.runtimes:
        assert {law.name for law in each.laws if law.error is not None} >= {"reset", "window edge", "snapshot"}
        assert each.lowering.median_step < 1e-5
    assert report.runtimes[1].twin.runtime == "native"


@pytest.mark.parametrize("name", ["native", *arm64.RUNTIME.processors])
def test_a_session_of_the_runner_keeps_the_protocol(name, make_artifact):
    artifact = make_artifact("xnnpack-int4", "explicit")
    runtime = find("native" if name == "native" else f"arm64/{name}")
    session = runtime.open_session(artifact.folder, artifact.manifest)
    before = session.prefill([3, 4, 5])
    for wrong in ([], [-1], [1024]):
        with pytest.raises(UsageError):
            session.prefill(wrong)
    with pytest.raises(WindowExceededError):
        session.prefill([0] * (WINDOW + 1))
    with pytest.raises(UsageError, match="padding"):
        session.prefill([1], pad_to=4)
    assert session.position == 3
    saved = session.state()
    onward = session.prefill([6, 7])
    session.restore(saved)
    assert session.position == 3
    np.testing.assert_array_equal(session.prefill([6, 7]), onward)
    session.reset()
    assert session.state().position == 0
    np.testing.assert_array_equal(session.prefill([3, 4, 5]), before)


def test_a_state_moves_between_executorch_the_runner_and_arm64(make_artifact):
    artifact = make_artifact("xnnpack-fp32", "explicit")
    first = executorch.RUNTIME.open_session(artifact.folder, artifact.manifest)
    first.prefill([9, 8, 7, 6])
    saved, expected = first.state(), first.decode(5)
    for runtime in ("native", "arm64"):
        session = find(runtime).open_session(artifact.folder, artifact.manifest)
        session.restore(saved)
        assert np.abs(session.decode(5) - expected).max() < 1e-5 * np.abs(expected).max()
        with pytest.raises(UsageError, match="does not fit"):
            session.restore(type(saved)(WINDOW + 1, saved.tensors))


def test_a_runner_that_dies_is_one_line(make_artifact):
    artifact = make_artifact("xnnpack-int8", "explicit")
    session = native.RUNTIME.open_session(artifact.folder, artifact.manifest)
    os.kill(session.runner.pid, 9)
    with pytest.raises(Exception, match="lfm2_runner ended") as caught:
        session.prefill([1])
    assert "\n" not in str(caught.value)


def test_processors_are_named_and_qemus_plain_max_is_not_among_them():
    assert each_processor("arm64") == ["arm64/cortex-a53", "arm64/cortex-a76", "arm64/max"]
    assert each_processor("native") == ["native"]
    assert all(cpu != "max" for cpu, _ in arm64.PROCESSORS.values())
    for unknown in ("arm64/cortex-x9", "native/cortex-a53", "arm65"):
        with pytest.raises(UsageError):
            find(unknown)
