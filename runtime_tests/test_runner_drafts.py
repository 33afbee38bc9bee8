"""The C++ runner guesses what Python guesses, whatever is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import drafted_text
import pytest

from lfm2_export.runtimes.session import Session

HERE = Path(__file__).parent
RUNNER = HERE.parent / "runner"


@pytest.mark.skipif(sys.platform != "linux", reason="the runner is built on Linux")
def test_the_runner_drafts_as_python_does(tmp_path: Path) -> None:
    if shutil.which("g++") is None and "CI" not in os.environ:
        pytest.skip("no g++")
    (wheel,) = find_spec("executorch").submodule_search_locations
    program = tmp_path / "drafts"
    headers = [f"{wheel}/include", f"{wheel}/include/executorch/runtime/core/portable_type/c10"]
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-DC10_USING_CUSTOM_GENERATED_MACROS"),
            *("-I", RUNNER, *(word for each in headers for word in ("-isystem", each))),
            *(HERE / "runner_drafts.cpp", RUNNER / "drafts.cpp", "-o", program),
            *(
                "-ffunction-sections",
                "-Wl,--gc-sections",
            ),  # no smaller model: its session is not compiled
        ],
        check=True,
    )
    text = drafted_text.text()
    said = " ".join(map(str, [drafted_text.MOST, *text]))
    lines = subprocess.run([program], input=said, capture_output=True, text=True, check=True).stdout.splitlines()
    drafts = [[int(token) for token in line.split()] for line in lines]
    assert drafts == drafted_text.expected(text, Session.draft_cost)
    assert {len(draft) for draft in drafts} >= {0, 2, 7}
