"""What a proof needs is said before it begins, and no more threads are used than a model's size is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import code_of

from lfm2_export.environment import resources
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import SIZES
from lfm2_export.quantize.size import ROOM
from lfm2_export.recipes import load


def test_too_little_memory_for_a_proof_is_said_before_any_work(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 300_000_000)
    output = tmp_path / "made"
    assert code_of("export", "nano", "--recipe", "onnx-fp32", "--output", str(output), "--quiet") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "0.3 GB are free" in line
    assert "--no-verify" in line
    assert not output.exists()
    options = ("--no-verify", "--quiet")  # without a proof it fits
    assert code_of("export", "nano", "--recipe", "onnx-fp32", "--output", str(output), *options) == 0
    assert code_of("parity", str(output), "--quiet") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "0.3 GB are free; run `lfm2-export parity` on a larger machine" in line


def test_where_the_system_does_not_say_nothing_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: None)
    resources.check_memory(SIZES["2.6b"], load("xnnpack-int4").quantization)


@pytest.mark.parametrize(("size", "most"), [("350m", 3e9), ("1.2b", 8e9), ("2.6b", 12e9)])
def test_the_estimate_holds_the_weights_once_in_fp32_as_far_as_there_is_room(size: str, most: float) -> None:
    needed = resources.proof_bytes(SIZES[size], load("xnnpack-int4").quantization)
    assert min(4 * resources.parameters(SIZES[size]), ROOM) < needed < most


def test_a_small_model_gets_one_thread_and_gives_the_others_back() -> None:
    nano = open_checkpoint("nano").config
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with resources.torch_threads(nano):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        with resources.torch_threads(SIZES["350m"]):
            assert torch.get_num_threads() == 1  # what the user allows is not exceeded
    finally:
        torch.set_num_threads(before)
