"""A Core ML artifact without Core ML: its program computed by coremltools' own definitions, in numpy.

It shows that the lowered program computes the model, where Core ML does not run. It is not what an app runs, so what it
passes is checked and not proven.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session


class CoreMlTools(Runtime):
    """Stands in for Core ML."""

    name = "coremltools"
    targets = ("coreml",)
    stands_in = True
    emulates = "NPU"

    def version(self) -> str:
        """Return the version of the installed coremltools. MissingDependencyError if there is none."""
        try:
            return f"coremltools {installed('coremltools')}"
        except PackageNotFoundError as error:
            raise MissingDependencyError(
                "coremltools is not installed; pip install 'lfm2-export[coreml]' (Python 3.11 to 3.13)"
            ) from error

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact for one conversation. ArtifactError for a file that holds no such program."""
        from lfm2_export.runtimes._core_ml_program import CoreMlProgram
        from lfm2_export.runtimes._pte_methods import check_file
        from lfm2_export.runtimes._slices import SliceSession, pte_call

        path = folder / manifest.methods[0].file
        check_file(path, manifest)
        call = pte_call(CoreMlProgram(path), manifest)
        return SliceSession(call, manifest, self.name, self.version())

    def load_library(self) -> None:
        """Import torch and coremltools."""
        import_module("lfm2_export.runtimes._core_ml_program")


RUNTIME = CoreMlTools()
