"""The methods of a `.pte` of static shape, through ExecuTorch's in-process runtime."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.progress.native_output import silenced
from lfm2_export.runtimes._agreement import check_program

if TYPE_CHECKING:
    from torch import Tensor


class PteMethods:
    """A loaded `.pte` that agrees with its manifest, callable by method name. ArtifactError where it is refused."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._loaded = _opened(path, manifest)
        weakref.finalize(self, _unload, self._loaded)

    def __call__(self, method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        try:
            with silenced(1, 2):
                return self._loaded[0].run_method(method, inputs, clone_outputs=False)
        except RuntimeError as error:
            raise ArtifactError(f"{self.path}: {method} failed: {one_line(error)}") from error


def check_file(path: Path, manifest: Manifest) -> None:
    """Hold a file against its manifest without running it. Raises ArtifactError."""
    _unload(_opened(path, manifest))


def _opened(path: Path, manifest: Manifest) -> list[Any]:
    from executorch.extension.pybindings import portable_lib

    try:
        with silenced(1, 2):
            loaded = [portable_lib._load_for_executorch(str(path))]
        loaded[0].method_names()  # says whether it is a program at all
    except RuntimeError as error:
        raise ArtifactError(f"{path}: ExecuTorch cannot load it: {one_line(error)}") from error
    for method in manifest.methods:
        check_program(loaded[0], path, method, manifest)
    return loaded


def _unload(loaded: list[Any]) -> None:
    """Let go of a program: a backend's destructor may log each step."""
    with silenced(1, 2):
        loaded.clear()
