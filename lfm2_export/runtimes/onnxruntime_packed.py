"""onnxruntime over weights it packed once before: a file of this machine, which every later session maps.

To compute with a quantized matrix onnxruntime first brings it into the layout of this processor's kernels, in memory of
its own, each time it loads a model: 262 MB at the 350M shape at int4. Here the first session also writes that
layout to a file (its option `session.save_external_prepacked_constant_initializers`); later ones map the file: the same
bits, loaded sooner, in pages that the system may drop and that processes share. The file repeats the stored weights, so
it is 2.2 times as large as the artifact's. It lies in the cache folder, fits one artifact, one version of onnxruntime
and one kind of processor, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.manifest import FileEntry, Manifest
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.files import FolderKind, Need, cache_root, check_room, staged_folder, sweep
from lfm2_export.runtimes import onnxruntime
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession
from lfm2_export.runtimes.runtime import Runtime

_SETTINGS = {
    "session.save_external_prepacked_constant_initializers": "1",
    # In bytes. Scales must be outside as well: with a limit of 4096 and scales below it, onnxruntime 1.31.1 writes
    # matrices that compute zeros. Constants that shapes are made of must stay inside.
    "session.optimized_model_external_initializers_min_size_in_bytes": "128",
}
_PROBE = range(8)  # tokens
_CPUINFO = Path("/proc/cpuinfo")
_DECISIVE = ("model name", "flags", "CPU part", "Features")  # its lines on x86 and on ARM


class OnnxRuntimePacked(Runtime):
    """The library on the CPU. The runtime `onnxruntime` judges the stored weights."""

    name = "onnxruntime-packed"
    targets = ("onnx",)
    taken = "on request"

    def version(self) -> str:
        """Return the version of the installed onnxruntime. MissingDependencyError if there is none."""
        return onnxruntime.RUNTIME.version()

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> PackedSession:
        """Load an artifact for one conversation. Packs it before, where this machine has not done so yet."""
        return PackedSession(packed(folder, manifest), manifest, threads)

    def load_library(self) -> None:
        """Import onnxruntime, and onnx, which the file is read with before."""
        super().load_library()
        import onnx  # noqa: F401

    def prepare(self, folder: Path, manifest: Manifest) -> None:
        """Pack the artifact, where this machine has not done so yet."""
        packed(folder, manifest)


RUNTIME = OnnxRuntimePacked()


class PackedSession(OnnxRuntimeSession):
    """One conversation, batch 1 (see `Session`), with a packed `model` of the manifest's artifact."""

    runtime = "onnxruntime-packed"

    def __init__(self, model: Path, manifest: Manifest, threads: int | None = None) -> None:
        method = manifest.methods[0].model_copy(update={"file": model.name})
        super().__init__(model.parent, manifest.model_copy(update={"methods": [method]}), threads=threads)

    def _configure(self, options: Any) -> None:
        import onnxruntime

        super()._configure(options)
        # the graph was optimized before it was written
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def packed(folder: Path, manifest: Manifest) -> Path:
    """Return the packed model of an artifact, written if it is not there.

    Raises ArtifactError where onnxruntime cannot load or pack it, or what it packed gives other bits.
    """
    file = manifest.methods[0].file
    kept = cache_root() / "packed" / _key(file, manifest)
    model = kept / Path(file).name
    if model.is_file():
        sweep(kept.parent)  # of the run that packed it, should it have been killed
    else:
        size = sum(entry.size for _, entry in _stored(file, manifest))
        check_room(Need(kept, size, "the packed weights (LFM2_EXPORT_CACHE)"))
        kind = FolderKind("chat --runtime onnxruntime-packed", lambda _: {model.name, f"{model.name}_data"})
        with staged_folder(kept, force=True, kind=kind) as staging:
            _pack(folder / file, staging / model.name)
            _compare(OnnxRuntimeSession(folder, manifest), PackedSession(staging / model.name, manifest))
    return model


def _compare(plain: OnnxRuntimeSession, packed: PackedSession) -> None:
    expected, found = plain.prefill(_PROBE), packed.prefill(_PROBE)
    if not np.array_equal(found, expected) or not np.array_equal(packed.decode(_PROBE[1]), plain.decode(_PROBE[1])):
        raise ArtifactError(f"onnxruntime {RUNTIME.version()} packs this model wrongly; use the runtime onnxruntime")


def _pack(source: Path, target: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}_data")
    for key, value in _SETTINGS.items():
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        reason = one_line(error)
        raise ArtifactError(
            f"{source}: onnxruntime {RUNTIME.version()} cannot pack it into {target.parents[2]}; should there be no "
            f"room, or no right to write, let LFM2_EXPORT_CACHE name another folder: {reason}"
        ) from error


def _key(file: str, manifest: Manifest) -> str:
    """Of the model's bytes (graph and external data), the library and the processor: what a layout depends on."""
    stored = {name: entry.sha256 for name, entry in _stored(file, manifest)}
    return hashlib.sha256(json.dumps([stored, RUNTIME.version(), _processor()]).encode()).hexdigest()[:32]


def _stored(file: str, manifest: Manifest) -> list[tuple[str, FileEntry]]:
    return [(name, entry) for name, entry in manifest.files.items() if name.startswith(file)]


def _processor() -> list[str]:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    return [platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(_DECISIVE)})]
