"""Fixtures of the unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from checkpoints import write_tiny

if TYPE_CHECKING:
    from xnnpack_artifacts import Make

    from lfm2_export.artifact.folder import Artifact


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def tiny_checkpoint(_tiny: Path, tmp_path: Path) -> Path:
    """A folder with a good tiny checkpoint, the test's own to spoil."""
    return Path(shutil.copytree(_tiny, tmp_path / "checkpoint"))


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Everything below a folder, to see that nothing was written."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 1 << 24)
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def seeing_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LFM3-VL with a processor, which needs no torchvision."""
    from seeing_checkpoints import write_seeing  # imports transformers' models

    return write_seeing(tmp_path_factory.mktemp("seeing") / "lfm3-vl", "lfm3_vl")


@pytest.fixture(scope="session")
def seeing_artifact(seeing_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same as ONNX, not proven; its window is 128."""
    from lfm2_export.pipeline import export

    output = tmp_path_factory.mktemp("seeing") / "artifact"
    return export(str(seeing_checkpoint), "onnx-fp32", output, overrides=["window=128"], verify=False)[0]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Lowers XNNPACK artifacts, each kind once."""
    from xnnpack_artifacts import Maker  # ExecuTorch takes seconds to import, and most tests need none

    return Maker(tmp_path_factory)
