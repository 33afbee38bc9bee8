"""The oldest onnxruntime that a manifest names does run the artifact, and answers as today's does.

Each of them lies in a folder of its own, put on the path of a process of its own (`make .venv/installed-oldest`). What
the release before it says, tried by hand on x86-64, stands beside the versions in `targets/onnx/target.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import oldest_onnxruntime_process
import pytest

HERE = Path(__file__).parent
RELEASES = Path(sys.prefix) / "onnxruntime"
RECIPES = sorted(path.stem for path in (HERE.parent / "recipes").glob("onnx-*.yaml") if "qnn" not in path.stem)
PLAIN, FUSED = "options.conv=plain", "options.conv=fused"
CASES = [
    *((recipe,) for recipe in RECIPES),
    *((recipe, PLAIN) for recipe in ("onnx-fp32", "onnx-int8", "onnx-int4", "onnx-int4-mixed")),
    ("onnx-q4f16", "options.fused_embedding=false"),
    *((recipe, FUSED) for recipe in ("onnx-fp32", "onnx-int4")),
]


def installed(version):
    """The folder of an onnxruntime release; where it is absent the test is skipped, in CI it fails."""
    folder = RELEASES / version
    if not (folder / "onnxruntime").is_dir():
        reason = f"onnxruntime {version} is not in {folder}; make .venv/installed-oldest"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return folder


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_oldest_release_answers_as_the_current_one(case, make_artifact):
    recipe, *overrides = case
    artifact = make_artifact(recipe, "explicit", *overrides)
    library, oldest = artifact.manifest.runtime_requirement.split(">=")
    assert library == "onnxruntime"
    done = subprocess.run(
        [sys.executable, oldest_onnxruntime_process.__file__, str(artifact.folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed(oldest)), str(HERE.parent)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["version"] == oldest
    assert found["replies"] == {str(artifact.folder): oldest_onnxruntime_process.replies(artifact.folder)}
