"""The CUDA runtime as far as it can be judged without a GPU: what it refuses, what it copies, what is a fallback."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from decoders import random_decoder, state_error, tokens
from onnx_artifacts import WINDOW, lower, pair, recipe

from lfm2_export import runtimes
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.cli.main import run as command_line
from lfm2_export.errors import ArtifactError, MissingDependencyError
from lfm2_export.parity.cases import Case
from lfm2_export.parity.truth import EagerTruth
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes import onnxruntime_cuda
from lfm2_export.runtimes._device_session import refuse
from lfm2_export.runtimes.onnxruntime import RUNTIME

HALF = ["onnx-fp16", "onnx-q4f16"]
CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class HereInstead(onnxruntime_cuda.CudaSession):
    """All of the CUDA session's own code, with the CPU as the device."""

    _providers = ("CPUExecutionProvider",)
    _device = "cpu"


def made(folder: Path, name: str) -> Manifest:
    made_by = recipe(name)
    manifest = lower(quantize(random_decoder(), made_by.quantization, made_by.cache), made_by, folder)
    return manifest.model_copy(update={"recipe": made_by.model_dump(mode="json")})


@pytest.mark.parametrize("name", HALF)
def test_state_on_the_device_obeys_the_laws(tmp_path: Path, name: str) -> None:
    manifest = made(tmp_path, name)
    there, plain = HereInstead(tmp_path, manifest), RUNTIME.open_session(tmp_path, manifest)
    for _ in range(2):
        for chunk in (tokens(7), [3], tokens(4)):
            np.testing.assert_array_equal(there.prefill(chunk), plain.prefill(chunk))
        snapshot = there.state()
        assert state_error(snapshot, plain.state()) == 0
        kept, onward = copy.deepcopy(snapshot), there.decode(5)
        assert state_error(snapshot, kept) == 0
        there.prefill(tokens(9))
        there.restore(snapshot)
        np.testing.assert_array_equal(there.decode(5), onward)
        there.reset()
        plain.reset()


def test_a_node_that_fell_back_is_named(tmp_path: Path) -> None:
    manifest = made(tmp_path, "onnx-fp16")
    there = HereInstead(tmp_path, manifest)
    refuse(there.fallen("CPUExecutionProvider"), "CPUExecutionProvider")
    with pytest.raises(ArtifactError, match=r"no kernel on CUDAExecutionProvider: .*embed_tokens/Gather") as caught:
        refuse(there.fallen("CUDAExecutionProvider"), "CUDAExecutionProvider")
    assert "Shape" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int4", *HALF])
def test_only_fp16_artifacts_are_for_it(tmp_path: Path, name: str) -> None:
    able = runtimes.able(made(tmp_path, name))
    assert ("onnxruntime-cuda" in able) == (name in HALF)
    assert able[0] == "onnxruntime"


@pytest.mark.skipif(CUDA, reason="this onnxruntime has CUDA")
def test_without_cuda_the_reason_is_said() -> None:
    with pytest.raises(MissingDependencyError, match=r"built without CUDA.*pip install onnxruntime-gpu"):
        onnxruntime_cuda.RUNTIME.version()


@pytest.mark.skipif(CUDA and onnxruntime_cuda._has_gpu(), reason="there is a GPU: parity runs on it")
@pytest.mark.slow
def test_parity_on_it_exits_with_2_and_parity_as_such_reports_it_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lfm2_export import export, open_artifact
    from lfm2_export.model.load import open_checkpoint
    from lfm2_export.parity.effort import Effort
    from lfm2_export.parity.prove import prove

    folder = tmp_path / "nano"
    loose = ["gates.quality.mean_kld=1", "gates.quality.top1=0.5"]  # for the few tokens of this short proof
    export("nano", "onnx-q4f16", folder, overrides=[f"window={WINDOW}", *loose], verify=False)
    with pytest.raises(SystemExit) as left:
        command_line(["parity", str(folder), "--runtime", "onnxruntime-cuda", "-q"])
    assert left.value.code == 2
    assert "CUDA" in capsys.readouterr().err
    report = prove(open_artifact(folder), open_checkpoint("nano"), effort=Effort(200, 2, 1, 4))
    (cuda,) = [each for each in report.runtimes if each.runtime == "onnxruntime-cuda"]
    assert (cuda.status, json.loads(cuda.model_dump_json())["reason"]) == ("skipped", cuda.reason)
    assert cuda.reason
    assert report.passed


@pytest.mark.skipif(not (CUDA and onnxruntime_cuda._has_gpu()), reason="no GPU: run `parity` on a machine with one")
@pytest.mark.parametrize("name", HALF)
def test_on_a_gpu_it_equals_eager(tmp_path: Path, name: str) -> None:
    _, eager = pair(random_decoder(), tmp_path, recipe(name))
    session = onnxruntime_cuda.RUNTIME.open_session(tmp_path, made(tmp_path, name))
    for chunk in (tokens(7), [3], tokens(4)):
        np.testing.assert_allclose(session.prefill(chunk), eager.prefill(chunk), rtol=0, atol=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch has a GPU here")
def test_a_reference_that_this_machine_lacks_is_refused_before_the_artifact_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("cuda", "finds no CUDA GPU"), ("tpu", "no reference 'tpu'; there are cpu and cuda")):
        with pytest.raises(SystemExit) as left:
            command_line(["parity", str(tmp_path / "nothing-here"), "--reference", name, "-q"])
        assert left.value.code == 2
        assert said in capsys.readouterr().err


def test_eager_computes_where_its_weights_are() -> None:
    """A meta device stands in for a GPU: nothing of a call may be made on the CPU and meet the weights there."""
    decoder = random_decoder().to("meta")
    with pytest.raises(NotImplementedError, match="meta"):  # the first value that leaves the device, not before
        EagerTruth(decoder, WINDOW).answer(Case("whole", tuple(tokens(5)), (5,)))
    assert EagerTruth(decoder, WINDOW).runtime == "eager on meta"
