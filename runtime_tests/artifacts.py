"""Which artifacts climb the ladder, and how they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.errors import MissingDependencyError
from lfm2_export.parity.effort import Effort
from lfm2_export.qualcomm import sdk
from lfm2_export.runtimes.session import Session

WINDOW = 320  # past one call's 256 tokens, so that long prompts are cut, and small enough to run to its edge

ARTIFACTS = [
    ("xnnpack-fp32", "explicit"),
    ("xnnpack-int8", "explicit"),
    ("xnnpack-int4", "explicit"),
    ("xnnpack-int8", "explicit", "cache=bfloat16"),
    ("xnnpack-int4-small", "explicit"),
    ("xnnpack-int4-mixed", "explicit"),
    ("xnnpack-fp16", "explicit"),
    ("xnnpack-fp32", "resident"),
    ("xnnpack-int8", "resident"),
    ("xnnpack-int4", "resident"),
    ("xnnpack-int4-small", "resident"),
    ("xnnpack-int4-mixed", "resident"),
    ("xnnpack-fp16", "resident"),
    ("onnx-fp32", "explicit"),
    ("onnx-int8", "explicit"),
    ("onnx-int4", "explicit"),
    ("onnx-int4-small", "explicit"),
    ("onnx-int4-mixed", "explicit"),
    ("onnx-fp16", "explicit"),
    ("onnx-q4f16", "explicit"),
    ("qnn-16a8w", "explicit", "options.weight_sharing=false", "calibration.windows=8"),
]
EFFORT = Effort(quality_tokens=600, questions=24, prompts=3, continuation=12)
# a call takes the NPU's emulator 0.1 to 0.5 s
ON_EMULATOR = Effort(quality_tokens=60, questions=3, prompts=1, continuation=4, law_tokens=24)
RUNTIME = {"xnnpack": "executorch", "onnx": "onnxruntime", "qnn": "qnn"}


def need_qnn() -> None:
    """Skip where Qualcomm's libraries are absent, unless CI asks for no such skip: then the test fails by itself."""
    try:
        sdk.version()
    except MissingDependencyError as error:
        if "CI" not in os.environ:
            pytest.skip(str(error))


def open_session(artifact: Artifact, folder: Path | None = None) -> Session:
    """Load an artifact through the runtime that is meant for it, from another folder if one is given."""
    runtime = runtimes.find(RUNTIME[artifact.manifest.target])
    return runtime.open_session(folder or artifact.folder, artifact.manifest)
