"""onnxruntime on Qualcomm's NPU (on x86 Linux: its emulator), driving the static methods of an `onnx_qnn` artifact.

The state lies here: each call gets it whole, and the new slices that come out are written at the position.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, LoweringError, one_line
from lfm2_export.qualcomm import provider
from lfm2_export.qualcomm import soc as chips
from lfm2_export.runtimes._agreement import check_graph
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session

_QUIET = 3  # onnxruntime's log level: errors only


class OnnxRuntimeQnn(Runtime):
    """The library with Qualcomm's provider. The target itself reads the stored weights back."""

    name = "onnxruntime-qnn"
    targets = ("onnx_qnn",)
    taken = "first"
    emulates = "NPU" if platform.machine() == "x86_64" else None

    def version(self) -> str:
        """Return the version of the installed onnxruntime-qnn. MissingDependencyError if there is none."""
        return provider.version()

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact on the NPU for one conversation. ArtifactError when it does not run there whole."""
        for method in manifest.methods:
            check_graph(folder / method.file, method, manifest)
        soc = str(manifest.recipe["options"].get("soc", chips.DEFAULT))
        try:
            opened = {
                method.name: provider.open_model(folder / method.file, soc).session for method in manifest.methods
            }
        except LoweringError as error:
            raise ArtifactError(str(error)) from error
        return self._session(opened, manifest, self.name)

    def reference_session(self, folder: Path, manifest: Manifest) -> Session | None:
        """Load the same integer graphs on onnxruntime's CPU: what the NPU must equal. None for fp16: eager is that."""
        if manifest.recipe["calibration"] is None:
            return None
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # compute what is written
        cpu = ["CPUExecutionProvider"]
        try:
            opened = {
                method.name: onnxruntime.InferenceSession(str(folder / f"{method.name}.onnx"), options, providers=cpu)
                for method in manifest.methods
            }
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            reason = one_line(error)
            raise ArtifactError(f"{folder}: onnxruntime cannot load it: {reason}") from error
        return self._session(opened, manifest, "onnxruntime CPU")

    def _session(self, opened: Mapping[str, Any], manifest: Manifest, name: str) -> Session:
        from lfm2_export.runtimes._slices import SliceSession, graph_call

        return SliceSession(graph_call(opened, manifest), manifest, name, self.version())


RUNTIME = OnnxRuntimeQnn()
