"""onnxruntime on Qualcomm's NPU (on x86 Linux: its emulator), driving the static methods of an `onnx_qnn` artifact.

The state lies here: each call gets it whole, and the new slices that come out are written at the position.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export import qnn_provider
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.errors import ArtifactError, LoweringError
from lfm2_export.model.state import is_cache
from lfm2_export.model.static_call import empty_static_state, static_inputs, write_static_slices
from lfm2_export.runtimes.session import Snapshot, check_room, check_snapshot

_QUIET = 3  # onnxruntime's log level: errors only


def version() -> str:
    """Of the installed onnxruntime-qnn; MissingDependencyError if there is none."""
    return qnn_provider.version()


def runs(manifest: Manifest) -> bool:
    """Whether the artifact is an ONNX one for the NPU."""
    return manifest.target == "onnx_qnn"


def open_session(folder: Path, manifest: Manifest) -> StaticSession:
    """Load an artifact on the NPU for one conversation. ArtifactError when it does not run there whole."""
    soc = str(manifest.recipe["options"].get("soc", qnn_provider.DEFAULT_SOC))
    try:
        opened = {
            method.name: qnn_provider.open_model(folder / method.file, soc).session for method in manifest.methods
        }
    except LoweringError as error:
        raise ArtifactError(str(error)) from error
    return StaticSession(manifest, opened, "onnxruntime_qnn", platform.machine() == "x86_64")


def weights_session(folder: Path, manifest: Manifest) -> None:
    """None: the target itself reads the stored weights back."""
    return


def reference_session(folder: Path, manifest: Manifest) -> StaticSession | None:
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
    return StaticSession(manifest, opened, "onnxruntime CPU", False)


class StaticSession:
    """One conversation, batch 1 (see `Session`), over two static methods: `decode` (one row) and `prefill`."""

    pads = True
    has_state = True

    def __init__(self, manifest: Manifest, sessions: dict[str, Any], runtime: str, emulated: bool) -> None:
        self.runtime = runtime
        self.emulated = emulated
        self.version = version()
        self.window = manifest.window
        self._config = from_dict(manifest.source.config, "manifest.json")
        self._sessions = sessions
        self._rows = {method.name: method.max_tokens for method in manifest.methods}
        self.reset()

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._position = 0
        self._state = empty_static_state(self._config, self.window)

    def decode(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        """Cut into calls of the prefill method's rows, the last one padded; a lone token needs no padding."""
        check_room(self._position, len(tokens), self.window, self._config.vocab_size, tokens)
        limit = self._rows["prefill"]
        for start in range(0, len(tokens), limit):
            chunk = tokens[start : start + limit]
            logits = self._call("decode" if len(chunk) == 1 and pad_to is None else "prefill", chunk)
        return logits

    def state(self) -> Snapshot:
        return Snapshot(self._position, {name: self._view(name, self._position).copy() for name in self._state})

    def restore(self, snapshot: Snapshot) -> None:
        check_snapshot(snapshot, {name: self._view(name, self.window).shape for name in self._state})
        self.reset()
        self._position = snapshot.position
        for name, values in snapshot.tensors.items():
            self._view(name, snapshot.position)[...] = values

    def _call(self, method: str, tokens: Sequence[int]) -> np.ndarray:
        inputs = static_inputs(self._config, tokens, self._position, self._rows[method], self.window)
        session = self._sessions[method]
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, inputs | self._state), strict=True))
        write_static_slices(self._state, outputs, self._position, len(tokens))
        self._position += len(tokens)
        return outputs["logits"][0]

    def _view(self, name: str, position: int) -> np.ndarray:
        """A state tensor in the contract's shape, a cache cut to the position."""
        tensor = self._state[name]
        return tensor[:, :, :position] if is_cache(name) else tensor.transpose(0, 2, 1)
