"""The WebGPU runtime as far as it can be judged without a GPU: what it says where something is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from decoders import random_decoder
from onnx_artifacts import lower, recipe

from lfm2_export import runtimes
from lfm2_export.errors import MissingDependencyError
from lfm2_export.parity.reference import rounded_as_in
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes import _vulkan as vulkan
from lfm2_export.runtimes import webgpu
from lfm2_export.runtimes._attention_check import Found
from lfm2_export.runtimes._vulkan import Gpu


def test_without_the_plugin_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(webgpu, "version", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lfm2-export\[webgpu\]'"):
        webgpu.RUNTIME.version()
    assert "pip install" in webgpu.described()


def test_without_a_gpu_the_driver_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webgpu.sys, "platform", "linux")
    monkeypatch.setattr(webgpu, "gpus", list)
    with pytest.raises(MissingDependencyError, match=r"no GPU.*mesa-vulkan-drivers"):
        webgpu.adapter()


def test_a_driver_that_computes_on_the_cpu_is_called_software(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webgpu.sys, "platform", "linux")
    monkeypatch.setattr(webgpu, "gpus", lambda: [Gpu("llvmpipe", "Mesa 25", software=True)])
    assert webgpu.adapter() == "llvmpipe, driver Mesa 25 (software)"


def test_without_vulkans_loader_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "_LOADER", "libnone.so.1")
    assert vulkan.gpus() == []


def test_it_is_for_every_onnx_artifact_but_only_when_named(tmp_path: Path) -> None:
    made_by = recipe("onnx-fp32")
    manifest = lower(random_decoder(), made_by, tmp_path)
    manifest = manifest.model_copy(update={"recipe": made_by.model_dump(mode="json")})
    assert "webgpu" in runtimes.able(manifest)
    assert "webgpu" not in runtimes.usual(manifest)


def test_either_way_to_compute_prompts_is_in_the_report() -> None:
    wrong, right = Found(0.14, 1e-7), Found(1e-7, 1e-7)
    assert (wrong.chunk, right.chunk) == (31, None)
    assert [check.reason is None for check in wrong.checks()] == [False, True]
    assert [check.reason is None for check in right.checks()] == [True, False]
    assert str(wrong) == "prompts in chunks of 31: whole ones are wrong by 0.14"


def test_the_reference_rounds_in_the_kernels_blocks_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webgpu.sys, "platform", "linux")
    assert webgpu.RUNTIME.activation_block(64, 256, 32) == 128
    assert webgpu.RUNTIME.activation_block(64, 96, 32) is None  # not a multiple of 128: it takes another kernel
    assert webgpu.RUNTIME.activation_block(24, 256, 32) is None
    made_by = recipe("onnx-int4")
    decoder = quantize(random_decoder(), made_by.quantization)
    head, x = decoder.lm_head, torch.randn(3, decoder.lm_head.weight.shape[1])
    before = head(x)
    with rounded_as_in(runtimes.find("onnxruntime"), decoder) as otherwise:
        assert not otherwise
    with rounded_as_in(webgpu.RUNTIME, decoder) as otherwise:
        assert otherwise
        assert not torch.equal(head(x), before)
    assert torch.equal(head(x), before)
