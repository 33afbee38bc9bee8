"""A Qualcomm NPU artifact on Qualcomm's HTP emulator, through ExecuTorch's in-process Python runtime.

The emulator computes what the NPU computes, integer for integer; it says nothing about speed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.progress.native_output import silenced
from lfm2_export.qualcomm import sdk
from lfm2_export.runtimes import executorch
from lfm2_export.runtimes._agreement import check_program
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session

if TYPE_CHECKING:
    from torch import Tensor


class QnnEmulator(Runtime):
    """ExecuTorch with Qualcomm's backend. A compiled program cannot leave its activations in float."""

    name = "qnn"
    targets = ("qnn",)
    taken = "first"
    emulates = "NPU"

    def version(self) -> str:
        """Return the versions of executorch and of Qualcomm's libraries.

        Raises MissingDependencyError if either is absent, or has none for this machine.
        """
        return f"{executorch.RUNTIME.version()} on the HTP emulator of {sdk.version()}"

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact for one conversation. ArtifactError when ExecuTorch refuses the file."""
        from lfm2_export.runtimes._slices import SliceSession, pte_call

        call = pte_call(_Program(folder, manifest), manifest)
        return SliceSession(call, manifest, "qnn-emulator", self.version())

    def load_library(self) -> None:
        """Import torch, ExecuTorch and Qualcomm's libraries."""
        sdk.prepare()


RUNTIME = QnnEmulator()


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
            self._loaded[0].method_names()  # says whether it is a program at all
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: ExecuTorch cannot load it: {one_line(error)}") from error
        weakref.finalize(self, _unload, self._loaded)
        for method in manifest.methods:
            check_program(self._loaded[0], self.path, method, manifest)

    def __call__(self, method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        try:
            with silenced(1, 2):
                return self._loaded[0].run_method(method, inputs, clone_outputs=False)
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: {method} failed: {one_line(error)}") from error


def _unload(loaded: list[Any]) -> None:
    """Let go of a program: its destructor logs each step."""
    with silenced(1, 2):
        loaded.clear()
