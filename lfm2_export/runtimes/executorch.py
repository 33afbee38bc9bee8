"""ExecuTorch's in-process Python runtime, driving both forms of an `xnnpack` artifact."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session


class ExecuTorch(Runtime):
    """The library that apps link, in this process. Its int8 kernels round their inputs, whatever one asks."""

    name = "executorch"
    targets = ("xnnpack",)
    forms = ("explicit", "resident")
    taken = "first"
    takes_images = True

    def version(self) -> str:
        """Return the version of the installed executorch. MissingDependencyError if there is none."""
        try:
            return installed("executorch")
        except PackageNotFoundError as error:
            raise MissingDependencyError("executorch is not installed; pip install executorch") from error

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact for one conversation. `threads` holds for the whole process, ExecuTorch's only pool.

        Raises ArtifactError when ExecuTorch refuses the file.
        """
        from lfm2_export.runtimes import _pte

        if threads is not None:
            _pte.set_threads(threads)
        session = _pte.ExplicitSession if manifest.form == "explicit" else _pte.ResidentSession
        return session(folder, manifest, self.version())

    def load_library(self) -> None:
        """Import torch, ExecuTorch and the kernels that artifacts call."""
        from lfm2_export.runtimes import _pte

        _pte.load_library()


RUNTIME = ExecuTorch()
