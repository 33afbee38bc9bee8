"""onnxruntime's WebGPU kernels, run on Mesa's software Vulkan: every recipe's proof, and the fault that is upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from artifacts import WINDOW
from conftest import Make
from software_gpu import FOLDER, software_gpu

from lfm2_export import runtimes
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.cli.main import run as command_line
from lfm2_export.errors import ArtifactError, WindowExceededError
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.runtimes import _attention_check, webgpu
from lfm2_export.runtimes._attention_check import CHUNK, LIMIT, Found, Heads, try_attention

RECIPES = ["fp32", "int8", "int4", "int4-small", "int4-mixed", "fp16", "q4f16"]
LOOSE = ("gates.quality.mean_kld=0.5", "gates.quality.top1=0.8")  # for the few tokens of these proofs
DRAFTS = {"law: verified = decoded", "law: rejected = never fed"}  # not verified on a GPU
UNPACKED = {"int4", "int4-small"}  # whose embedding's 4 bits are unpacked on the CPU


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with software_gpu():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_proven(recipe: str, make_artifact: Make, nano: Checkpoint) -> None:
    artifact = make_artifact(f"onnx-{recipe}", "explicit", *LOOSE, "window=64")
    effort = Effort(quality_tokens=60, questions=1, prompts=1, continuation=4, law_tokens=40, case_steps=8)
    (report,) = prove(artifact, nano, only=["webgpu"], effort=effort).runtimes
    assert report.status == "pass", [gate for gate in report.gates if gate.status == "fail"]
    gates = {gate.name: gate for gate in report.gates}
    skipped = {name for name, gate in gates.items() if gate.status == "skipped"}
    assert skipped == {"attention: 40 tokens whole", "law: explicit = resident", *DRAFTS}
    assert gates["attention: 40 tokens in chunks of 31"].status == "pass"
    assert "llvmpipe" in report.version
    assert "(software)" in report.version
    assert ("nodes on the CPU: BitwiseAnd embed_tokens/low" in report.notes[0]) == (recipe in UNPACKED)
    assert report.notes[-1].startswith("prompts in chunks of 31")
    assert report.reference == "eager"
    if recipe == "fp32":
        assert gates["lowering: max error"].value < 1e-5
    if recipe.startswith("int"):  # rounded in the kernels' own blocks, one step is as exact as in fp32
        assert gates["lowering: median step"].limit == 2.5e-6


@pytest.mark.parametrize("heads", [Heads(2, 32), Heads(2, 32, half=True)])
def test_the_fault_upstream_is_still_there(heads: Heads) -> None:
    """When this fails, a release has mended it: say so in docs/webgpu-attention-bug.md and let prompts go whole."""
    found = try_attention(heads, webgpu._device())
    assert found.whole > 10 * LIMIT
    assert found.chunked < LIMIT / 5
    assert found.chunk == CHUNK


def test_long_prompts_and_states_are_those_of_the_cpu(make_artifact: Make) -> None:
    artifact = make_artifact("onnx-fp32", "explicit", *LOOSE)
    there, here = (
        runtimes.find(name).open_session(artifact.folder, artifact.manifest) for name in ("webgpu", "onnxruntime")
    )
    tokens = np.random.default_rng(0).integers(10, 1000, WINDOW).tolist()
    for count in (5, CHUNK, CHUNK + 1, 40, 300):
        for session in (there, here):
            session.reset()
        np.testing.assert_allclose(there.prefill(tokens[:count], 64), here.prefill(tokens[:count]), atol=1e-4, rtol=0)
    carried = here.state()
    there.reset()
    there.restore(carried)
    np.testing.assert_allclose(there.decode(7), here.decode(7), atol=1e-4, rtol=0)
    assert there.position == 301
    with pytest.raises(WindowExceededError):
        there.prefill(tokens[: WINDOW - 300])  # its first chunk would fit
    assert there.position == 301
    np.testing.assert_allclose(there.decode(8), here.decode(8), atol=1e-4, rtol=0)


def test_compiled_shaders_are_kept_for_the_next_run(make_artifact: Make) -> None:
    artifact = make_artifact("onnx-fp32", "explicit", *LOOSE)
    webgpu.RUNTIME.open_session(artifact.folder, artifact.manifest).decode(7)
    kept = [path.stat().st_size for path in (FOLDER / "shaders").rglob("*") if path.is_file()]
    assert sum(kept) > 100_000


def test_a_node_on_the_cpu_that_is_not_listed_is_refused_by_name(
    make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact("onnx-int4", "explicit", *LOOSE)
    monkeypatch.setattr(webgpu, "_ON_CPU", frozenset())
    with pytest.raises(ArtifactError, match=r"5 nodes have no kernel on WebGPU: BitwiseAnd embed_tokens/low"):
        webgpu.RUNTIME.open_session(artifact.folder, artifact.manifest)


def test_a_gpu_that_computes_short_prompts_wrongly_is_refused(
    make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact("onnx-fp32", "explicit", *LOOSE)
    monkeypatch.setattr(webgpu, "try_attention", lambda heads, device: Found(0.5, 0.4))
    with pytest.raises(ArtifactError, match=r"llvmpipe.* computes attention wrongly, by 0.4 .*--runtime onnxruntime"):
        webgpu.RUNTIME.open_session(artifact.folder, artifact.manifest)


def test_where_whole_prompts_are_right_they_go_whole(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_artifact("onnx-fp32", "explicit", *LOOSE)
    monkeypatch.setattr(webgpu, "try_attention", lambda heads, device: Found(1e-7, 2e-7))
    session = webgpu.RUNTIME.open_session(artifact.folder, artifact.manifest)
    cpu = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
    assert session.notes == ("prompts whole",)
    assert [check.reason is None for check in session.checks] == [True, False]
    tokens = np.random.default_rng(0).integers(10, 1000, 40).tolist()
    assert np.abs(session.prefill(tokens) - cpu.prefill(tokens)).max() > 0.01  # as they do here, wrongly


def test_the_command_line_names_adapter_and_driver(make_artifact: Make, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = make_artifact("onnx-fp32", "explicit", *LOOSE)
    with pytest.raises(SystemExit):
        command_line(["doctor", "--json"])
    said = json.loads(capsys.readouterr().out)["machine"]["WebGPU"]
    assert "llvmpipe" in said
    assert "Mesa" in said
    assert "(software); prompts in chunks of 31: whole ones are wrong by 0.14" in said
    with pytest.raises(SystemExit) as left:
        command_line(["chat", str(artifact.folder), "--runtime", "webgpu", "--prompt", "What color is the sky?"])
    assert left.value.code in (0, None)
    assert "The sky is blue." in capsys.readouterr().out


def test_the_known_answer_is_the_cpus() -> None:
    import onnxruntime

    heads = Heads(2, 32)
    session = onnxruntime.InferenceSession(_attention_check.model(heads), providers=["CPUExecutionProvider"])
    assert _attention_check._error(session, heads, 40) < 1e-6
    assert _attention_check._error(session, heads, 31) < 1e-6
