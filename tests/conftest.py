"""Fixtures of the unit tests."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checkpoints import write_tiny

if TYPE_CHECKING:
    from xnnpack_artifacts import Make

    from lfm2_export.artifact.folder import Artifact
    from lfm2_export.checkpoint.source import Checkpoint
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer
    from lfm2_export.model.decoder import Decoder


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def tiny_checkpoint(_tiny: Path, tmp_path: Path) -> Path:
    """A folder with a good tiny checkpoint, the test's own to spoil."""
    return Path(shutil.copytree(_tiny, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def nano() -> Checkpoint:
    """The embedded LFM2."""
    from lfm2_export.model.load import open_checkpoint  # imports torch

    return open_checkpoint("nano")


@pytest.fixture(scope="session")
def decoder(nano: Checkpoint) -> Decoder:
    """nano in fp32, only to be read."""
    from lfm2_export.model.load import load_decoder

    return load_decoder(nano)


@pytest.fixture(scope="session")
def tokenizer(nano: Checkpoint) -> ChatTokenizer:
    """nano's."""
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer

    loaded = ChatTokenizer.load(nano.folder, nano.config)
    assert loaded is not None
    return loaded


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
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as ONNX in int4, not proven; its window is 96."""
    from lfm2_export.pipeline import export

    output = tmp_path_factory.mktemp("small") / "nano-onnx-int4"
    return export("nano", "onnx-int4", output, overrides=["window=96"], verify=False)[0].folder


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Lowers XNNPACK artifacts, each kind once."""
    from xnnpack_artifacts import Maker  # ExecuTorch takes seconds to import, and most tests need none

    return Maker(tmp_path_factory)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """lfm2_runner, built to stop at the first bad access or undefined behaviour."""
    from runner_program import need_runner

    return need_runner("x86_64-asan")


@pytest.fixture(scope="session")
def small_pte(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """nano as an explicit `.pte` in int8, not proven, with a licence beside it; its window is 64."""
    from runner_program import reseal

    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.pipeline import export

    folder = tmp_path_factory.mktemp("small") / "nano"
    export("nano", "xnnpack-int8", folder, overrides=["window=64", "options.max_tokens=16"], verify=False)
    (folder / "LICENSE").write_text("LFM Open License v1.0\n")
    reseal(folder)
    return open_artifact(folder)


@pytest.fixture(scope="session")
def small_bundle(small_pte: Artifact) -> Path:
    """The same as an archive for a desktop."""
    from lfm2_export import bundle

    return bundle(small_pte, "desktop").path


@pytest.fixture(scope="session")
def golden(small_bundle: Path) -> dict[str, Any]:
    """That bundle's golden cases."""
    with zipfile.ZipFile(small_bundle) as archive:
        return json.loads(archive.read("golden.json"))


@pytest.fixture(scope="session", params=["nano", "nano-lfm3"])
def talking_pte(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An LFM2 or LFM3 that talks, in int8, not proven; its window is 128."""
    from lfm2_export.pipeline import export

    overrides = ["window=128", "options.max_tokens=32"]
    output = tmp_path_factory.mktemp("talking") / request.param
    return export(request.param, "xnnpack-int8", output, overrides=overrides, verify=False)[0]
