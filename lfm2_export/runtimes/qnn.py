"""A Qualcomm NPU artifact on Qualcomm's HTP emulator, through ExecuTorch's in-process Python runtime.

The emulator computes what the NPU computes, integer for integer; it says nothing about speed.
"""

from __future__ import annotations

from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.qualcomm import sdk
from lfm2_export.runtimes import executorch
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session


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
        sdk.prepare()
        from lfm2_export.runtimes._pte_methods import PteMethods
        from lfm2_export.runtimes._slices import SliceSession, pte_call

        assert manifest.npu is not None
        call = pte_call(PteMethods(folder / manifest.npu.emulator_file, manifest), manifest)
        return SliceSession(call, manifest, "qnn-emulator", self.version())

    def load_library(self) -> None:
        """Import torch, ExecuTorch and Qualcomm's libraries."""
        sdk.prepare()


RUNTIME = QnnEmulator()
