"""torchvision out of a folder of its own, beside a torch that was not built for CUDA (`make .venv/installed-vision`).

PyPI's torchvision for Linux is built for CUDA: beside another torch its compiled operators stay away, and importing it
fails for want of two of them. Resizing needs none, so those two are declared here, with nothing behind them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(sys.prefix) / "torchvision"


def declare_operators() -> None:
    """Declare the operators without which torchvision cannot be imported; call it before."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def run_with_torchvision(program: Path, *arguments: str) -> str:
    """What a program of ours prints where torchvision is on its path; skipped where there is none, but not in CI."""
    if not (FOLDER / "torchvision").is_dir():
        reason = f"torchvision is not in {FOLDER}; make .venv/installed-vision"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), str(program.parent.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
