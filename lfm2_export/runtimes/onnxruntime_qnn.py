"""onnxruntime on Qualcomm's NPU (on x86 Linux: its emulator), driving the static methods of an `onnx_qnn` artifact.

The state lies here: each call gets it whole, and the new slices that come out are written at the position.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.errors import ArtifactError, LoweringError
from lfm2_export.model.state import State
from lfm2_export.qualcomm import provider
from lfm2_export.qualcomm import soc as chips
from lfm2_export.qualcomm.calls import graph_inputs
from lfm2_export.runtimes._slices import SliceSession

_QUIET = 3  # onnxruntime's log level: errors only


def version() -> str:
    """Of the installed onnxruntime-qnn; MissingDependencyError if there is none."""
    return provider.version()


def runs(manifest: Manifest) -> bool:
    """Whether the artifact is an ONNX one for the NPU."""
    return manifest.target == "onnx_qnn"


def open_session(folder: Path, manifest: Manifest) -> SliceSession:
    """Load an artifact on the NPU for one conversation. ArtifactError when it does not run there whole."""
    soc = str(manifest.recipe["options"].get("soc", chips.DEFAULT))
    try:
        opened = {method.name: provider.open_model(folder / method.file, soc).session for method in manifest.methods}
    except LoweringError as error:
        raise ArtifactError(str(error)) from error
    emulated = platform.machine() == "x86_64"
    return SliceSession(Graphs(manifest, opened), manifest, "onnxruntime_qnn", version(), emulated)


def weights_session(folder: Path, manifest: Manifest) -> None:
    """None: the target itself reads the stored weights back."""
    return


def reference_session(folder: Path, manifest: Manifest) -> SliceSession | None:
    """The same integer graphs on onnxruntime's CPU: what the NPU must equal. None for fp16, which eager judges."""
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
        raise ArtifactError(f"{folder}: onnxruntime cannot load it: {' '.join(str(error).split())[:200]}") from error
    return SliceSession(Graphs(manifest, opened), manifest, "onnxruntime CPU", version(), emulated=False)


class Graphs:
    """The opened graphs, callable by method name (see `_slices.Call`)."""

    def __init__(self, manifest: Manifest, opened: dict[str, Any]) -> None:
        self._config = from_dict(manifest.source.config, "manifest.json")
        self._window = manifest.window
        self._rows = {method.name: method.max_tokens for method in manifest.methods}
        self._opened = opened

    def __call__(self, method: str, tokens: Sequence[int], position: int, state: State) -> list[Tensor]:
        inputs = graph_inputs(self._config, tokens, position, self._rows[method], self._window) | state
        names = ["logits", *(f"new_{name}" for name in state)]
        outputs = self._opened[method].run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(output) for output in outputs]
