"""Qualcomm's execution provider for onnxruntime: open a model on the NPU, whole, or say which node stays outside.

On a phone or a Windows laptop the provider drives the NPU; on x86 Linux the same libraries compile for the NPU and
emulate it. They are the user's own installation (`pip install 'lfm2-export[qnn]'`), never part of an artifact.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

from lfm2_export.errors import LoweringError, MissingDependencyError, one_line
from lfm2_export.progress.native_output import silenced
from lfm2_export.qualcomm import soc as chips
from lfm2_export.qualcomm.sdk import INSTALL, PACKAGE

_PROVIDER = "QNNExecutionProvider"
_SILENT = 4  # onnxruntime's log level: only what is fatal; errors are raised


class Opened(NamedTuple):
    """A session on the NPU, and what it took: calls into it, operators inside them."""

    session: Any
    calls: int
    operators: int


def version() -> str:
    """Return the version of the installed onnxruntime-qnn. MissingDependencyError if there is none."""
    try:
        return installed(PACKAGE)
    except PackageNotFoundError as error:
        raise MissingDependencyError(f"QNN is not installed: {INSTALL}") from error


def open_model(path: Path, soc: str, context: Path | None = None) -> Opened:
    """Compile a model for the NPU of a chip, by name, and load it; with `context`, also write the compiled model there.

    Raises MissingDependencyError; RecipeError for an unknown chip; LoweringError with the operators that the provider
    left to the CPU, or with its own words where it could not start or compile at all.
    """
    import onnxruntime

    devices = _devices()
    options = _session_options(context)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices, _provider_options(soc))
    try:
        with silenced(1, 2):  # the compiler announces each of its steps
            session = onnxruntime.InferenceSession(str(path), options)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise LoweringError(f"{path.name}: {_why(path, soc, error)}") from error
    inside = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == _PROVIDER]
    return Opened(session, len(inside), sum(len(part.get_nodes()) for part in inside))


def _why(path: Path, soc: str, error: Exception) -> str:
    """The operators that fell off; or the provider's own message."""
    said = one_line(error)
    if "fallback" not in said:
        return f"QNN {version()} for {soc}: {said}"
    import onnxruntime

    options = _session_options(None)
    options.add_provider_for_devices(_devices(), _provider_options(soc))
    with silenced(1, 2):
        parts = onnxruntime.InferenceSession(str(path), options).get_provider_graph_assignment_info()
    left = Counter(node.op_type for part in parts if part.ep_name != _PROVIDER for node in part.get_nodes())
    inside = any(part.ep_name == _PROVIDER for part in parts)
    listed = ", ".join(f"{kind} × {count}" for kind, count in sorted(left.items()))
    return f"outside the NPU: {listed}" if inside else f"QNN {version()} does not start for {soc}, or takes no operator"


@cache
def _devices() -> list[Any]:
    """The provider's NPU; registered with onnxruntime once per process."""
    version()
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER][:1]


def _provider_options(soc: str) -> dict[str, str]:
    import onnxruntime_qnn

    return {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": str(chips.named(soc).number),
        "enable_htp_fp16_precision": "1",  # what is float in the graph runs as fp16; integers are not touched
        "offload_graph_io_quantization": "0",  # the first and last (de)quantization belong to the NPU too
    }


def _session_options(context: Path | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if context is not None:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(context))
        options.add_session_config_entry("ep.context_embed_mode", "0")
    return options
