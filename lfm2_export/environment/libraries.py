"""The libraries this project relies on: which are installed, and whether they fit."""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement

from lfm2_export.qualcomm import sdk

_PURPOSES = {
    "torch": "eager reference, tracing",
    "torchao": "quantized weights",
    "executorch": "XNNPACK .pte: lowering and running",
    "onnx": "ONNX: writing",
    "onnxruntime": "ONNX: running",
    "onnxruntime-ep-webgpu": "ONNX: running on GPUs",
    "onnxruntime-qnn": "Qualcomm NPU: compiling, emulating",
    "onnxruntime-genai": "ONNX: chat and parity through genai",
    "optimum": "optimum-cli export lfm2",
    "transformers": "pictures; tests: independent reference; bench: eager",
    "pillow": "pictures: chat --image",
    "torchvision": "pictures for LFM2-VL",
    "psutil": "bench",
    "matplotlib": "bench --plot",
    "ray": "matrix --ray",
    "llama-cpp-python": "bench --vs FILE.gguf",
}


class Part(NamedTuple):
    """One library: installed version, whether it fits, and the command that mends it if not."""

    name: str
    purpose: str
    required: bool
    version: str | None
    healthy: bool
    state: str
    remedy: str | None = None


def parts() -> list[Part]:
    """Check every library the project relies on against the versions that this release declares."""
    declared: dict[str, tuple[Requirement, bool]] = {}
    for line in metadata.requires("lfm2-export") or []:
        requirement = Requirement(line)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        declared.setdefault(requirement.name, (requirement, not optional))
    return [_part(name, purpose, *declared[name]) for name, purpose in _PURPOSES.items() if name in declared]


def _part(name: str, purpose: str, requirement: Requirement, required: bool) -> Part:
    install = f"pip install '{name}{requirement.specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Part(name, purpose, required, None, False, "missing" if required else "optional", install)
    if name == sdk.PACKAGE and (reason := sdk.failure()) is not None:
        return Part(name, purpose, required, version, False, reason)
    fits = requirement.specifier.contains(version.partition("+")[0], prereleases=True)
    if not fits:
        return Part(name, purpose, required, version, False, "wrong version", install)
    return Part(name, purpose, required, version, True, "ok")
