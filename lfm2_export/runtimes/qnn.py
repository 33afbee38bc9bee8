"""A Qualcomm NPU artifact on Qualcomm's HTP emulator, through ExecuTorch's in-process Python runtime.

The emulator computes what the NPU computes, integer for integer; it says nothing about speed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from torch import Tensor

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, MissingDependencyError
from lfm2_export.progress.native_output import silenced
from lfm2_export.qualcomm import sdk
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.session import Session


def version() -> str:
    """Of executorch and of Qualcomm's libraries; MissingDependencyError if either is absent."""
    try:
        executorch = installed("executorch")
    except PackageNotFoundError as error:
        raise MissingDependencyError("executorch is not installed; pip install executorch") from error
    return f"{executorch} on the HTP emulator of {sdk.version()}"


def runs(manifest: Manifest) -> bool:
    """Whether the artifact is an NPU `.pte`."""
    return manifest.target == "qnn"


def open_session(folder: Path, manifest: Manifest) -> Session:
    """Load an artifact for one conversation. ArtifactError when ExecuTorch refuses the file."""
    call = pte_call(_Program(folder, manifest), manifest)
    return SliceSession(call, manifest, "qnn-emulator", version(), emulated=True)


def weights_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: a compiled program cannot leave its activations in float."""
    return None


def reference_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: eager PyTorch is the reference, rebuilt from checkpoint, recipe and calibration tokens."""
    return None


class _Program:
    """The loaded `.pte`, callable by method name."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        sdk.prepare()
        from executorch.extension.pybindings import portable_lib

        assert manifest.npu is not None
        self.path = folder / manifest.npu.emulator_file
        try:
            with silenced(1, 2):
                self._loaded = [portable_lib._load_for_executorch(str(self.path))]
            found = self._loaded[0].method_names()
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: ExecuTorch cannot load it: {' '.join(str(error).split())}") from error
        weakref.finalize(self, _unload, self._loaded)
        for method in manifest.methods:
            if method.name not in found:
                raise ArtifactError(f"{self.path}: no method {method.name!r}, only {', '.join(sorted(found))}")

    def __call__(self, method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        try:
            with silenced(1, 2):
                return self._loaded[0].run_method(method, inputs, clone_outputs=False)
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: {method} failed: {' '.join(str(error).split())[:200]}") from error


def _unload(loaded: list[Any]) -> None:
    """Let go of a program: its destructor logs each step."""
    with silenced(1, 2):
        loaded.clear()
