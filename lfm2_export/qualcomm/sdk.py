"""Qualcomm's libraries, made usable in this process: what the `qnn` target compiles with and the `qnn` runtime runs on.

They come from the user's own installation, the pip package onnxruntime-qnn or a QAIRT SDK named by `QNN_SDK_ROOT`;
their licence forbids passing them on, and nothing is ever downloaded here. ExecuTorch asks the dynamic loader for
them by bare name, which normally means setting LD_LIBRARY_PATH before the process starts. Loading them first, by path,
does the same: the loader finds a library that is already there under its name. Two things matter in that: torch,
ExecuTorch's adaptor and onnxruntime must be there before (onnxruntime imported after a backend was started crashes the
process), and the libraries must keep their symbols to themselves (RTLD_LOCAL), because they carry a C++ runtime of
their own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path

from lfm2_export.errors import MissingDependencyError
from lfm2_export.progress.native_output import silenced

PACKAGE = "onnxruntime-qnn"
INSTALL = "pip install 'lfm2-export[qnn]'"
_ROOT = "QNN_SDK_ROOT"
_LAYOUT = Path("lib") / "x86_64-linux-clang"  # where an SDK keeps the libraries of this kind of machine
_LIBRARIES = ("libQnnSystem.so", "libQnnHtp.so")


def version() -> str:
    """Return the version of the libraries that would be used. MissingDependencyError if this machine has none."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise MissingDependencyError(
            f"QNN's compiler and emulator need Linux on x86-64, this is {platform.system()} {platform.machine()}"
        )
    package = _package_folder()
    root = os.environ.get(_ROOT)
    folder = Path(root) / _LAYOUT if root else package
    if folder is None:
        raise MissingDependencyError(f"QNN is not installed: {INSTALL}")
    for name in _LIBRARIES:
        if not (folder / name).is_file():
            raise MissingDependencyError(f"QNN: {folder / name} is missing; install it ({INSTALL}) or set {_ROOT} anew")
    if package is not None and folder.resolve() == package.resolve():
        return f"{PACKAGE} {installed(PACKAGE)}"
    return f"QAIRT SDK at {root}"


@cache
def prepare() -> None:
    """Load the libraries, once per process. MissingDependencyError when they are absent or do not load."""
    version()
    if not os.environ.get(_ROOT):
        os.environ[_ROOT] = _laid_out().name  # ExecuTorch downloads an SDK when it is unset
    folder = Path(os.environ[_ROOT]) / _LAYOUT
    with silenced(1, 2):  # the emulator's thread library announces itself
        import executorch.backends.qualcomm.python.PyQnnManagerAdaptor  # noqa: F401  must be there first (see above)
        import onnxruntime  # noqa: F401  likewise
        import torch  # noqa: F401  likewise

        for name in _LIBRARIES:
            try:
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_LOCAL)
            except OSError as error:
                raise MissingDependencyError(f"QNN: {name} does not load: {error}") from error


def failure() -> str | None:
    """Return why the NPU's backend does not start here, or None if it does.

    Starting it may abort the process, so a process of its own tries.
    """
    try:
        version()
    except MissingDependencyError as error:
        return str(error)
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", __name__], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = [line for line in (done.stderr + done.stdout).splitlines() if "ERROR" in line or "Error" in line]
    return f"does not start: {(said or [f'exit status {done.returncode}'])[-1].strip()[:200]}"


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime_qnn")
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def _laid_out() -> tempfile.TemporaryDirectory[str]:
    """The package as an SDK folder, for as long as this process lives. A link to the folder: links to files break
    the libraries' own search for their neighbours."""
    folder = tempfile.TemporaryDirectory(prefix="lfm2-export-qnn-")
    place = Path(folder.name) / _LAYOUT
    place.parent.mkdir(parents=True)
    package = _package_folder()
    assert package is not None  # version() was asked
    place.symlink_to(package, target_is_directory=True)
    return folder


def _start_backend() -> None:
    """The canary: what a lowering and a runtime do first."""
    prepare()
    from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
    from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext
    from executorch.backends.qualcomm.utils.utils import (
        generate_htp_compiler_spec,
        generate_qnn_executorch_compiler_spec,
    )

    options = generate_htp_compiler_spec(use_fp16=True)
    spec = generate_qnn_executorch_compiler_spec(soc_model=QcomChipset.SM8650, backend_options=options)
    with QnnManagerContext({"canary": spec}):
        pass


if __name__ == "__main__":
    _start_backend()
