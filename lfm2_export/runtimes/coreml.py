"""A Core ML artifact on Core ML itself, through ExecuTorch's in-process Python runtime, on a Mac."""

from __future__ import annotations

import platform
from importlib import import_module
from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes import executorch
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session

_BACKEND = "CoreMLBackend"
_MACOS = 15  # the first whose Core ML runs several functions of one program


class CoreMl(Runtime):
    """ExecuTorch with Apple's backend, on the processors that the artifact's recipe lets Core ML choose from."""

    name = "coreml"
    targets = ("coreml",)
    taken = "first"
    computes_on = "NPU"

    def version(self) -> str:
        """Return the versions of executorch and macOS.

        Raises MissingDependencyError where there is no Core ML, or none that runs such programs.
        """
        if platform.system() != "Darwin":
            raise MissingDependencyError(
                "Core ML runs on Apple's systems only; prove it there: `lfm2-export parity` on a Mac with macOS 15"
            )
        release = platform.mac_ver()[0]
        if int(release.partition(".")[0] or 0) < _MACOS:
            raise MissingDependencyError(f"macOS {release} cannot run this program; it needs macOS {_MACOS}")
        version = executorch.RUNTIME.version()
        from executorch.extension.pybindings import portable_lib

        if _BACKEND not in portable_lib._get_registered_backend_names():
            raise MissingDependencyError(f"executorch {version} was built without Core ML; pip install executorch")
        return f"{version} on Core ML of macOS {release} ({platform.machine()})"

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact for one conversation. ArtifactError when ExecuTorch refuses the file."""
        from lfm2_export.runtimes._pte_methods import PteMethods
        from lfm2_export.runtimes._slices import SliceSession, pte_call

        call = pte_call(PteMethods(folder / manifest.methods[0].file, manifest), manifest)
        return SliceSession(call, manifest, self.name, self.version())

    def load_library(self) -> None:
        """Import torch and ExecuTorch."""
        import_module("executorch.extension.pybindings.portable_lib")


RUNTIME = CoreMl()
