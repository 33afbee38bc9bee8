"""Qualcomm's libraries: named where they are missing, started without the network, good neighbours of others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from decoders import config
from qnn_programs import needs_qnn, recipe

from lfm2_export.errors import MissingDependencyError
from lfm2_export.qualcomm import sdk
from lfm2_export.targets.qnn.target import TARGET


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "_package_folder", lambda: None)
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    with pytest.raises(MissingDependencyError, match=r"QNN is not installed: pip install 'lfm2-export\[qnn\]'"):
        TARGET.check(recipe(), config())
    monkeypatch.setenv("QNN_SDK_ROOT", "/nowhere")
    with pytest.raises(MissingDependencyError, match=r"/nowhere/lib/x86_64-linux-clang/libQnnSystem\.so is missing"):
        TARGET.check(recipe(), config())


@needs_qnn
def test_the_backend_starts_and_nothing_is_downloaded() -> None:
    assert sdk.failure() is None
    program = (
        "import socket, sys; from lfm2_export.qualcomm import sdk\n"
        "def refuse(*_): sys.exit('asked the network')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "sdk._start_backend()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "QNN_SDK_ROOT"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, timeout=120)


@needs_qnn
def test_onnxruntime_can_be_imported_after_the_backend_has_run() -> None:
    program = "from lfm2_export.qualcomm import sdk; sdk._start_backend(); import onnxruntime"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
