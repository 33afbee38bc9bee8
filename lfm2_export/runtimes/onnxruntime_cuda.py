"""onnxruntime on an NVIDIA GPU, over the same `onnx` artifact, with nothing computed on the CPU behind one's back.

Only fp16 artifacts: CUDA's GroupQueryAttention has no fp32. Where a node would fall back, loading fails and names it;
arithmetic on shapes and positions (a few whole numbers) is the one thing onnxruntime rightly keeps on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes._device_session import DeviceSession, refuse
from lfm2_export.runtimes.runtime import Runtime

_PROVIDER = "CUDAExecutionProvider"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class OnnxRuntimeCuda(Runtime):
    """The library on the first GPU. In fp32 the attention has no kernel there, so it cannot judge weights alone."""

    name = "onnxruntime-cuda"
    targets = ("onnx",)
    computes_on = "GPU"
    # on an H200, at the 350M shape, a product with int4 weights is off by 0.0008 of its largest value, where the CPU's,
    # summed in fp32 and rounded once, is off by 0.0004
    half_sums: ClassVar[Mapping[int, float]] = {4: 2.0}

    def version(self) -> str:
        """Return the version of the installed onnxruntime-gpu.

        Raises MissingDependencyError if it, its CUDA libraries or a GPU is absent.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime-gpu is not installed; pip install onnxruntime-gpu") from error
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise MissingDependencyError(
                f"onnxruntime {onnxruntime.__version__} is built without CUDA; "
                "in an environment of its own: pip install onnxruntime-gpu"
            )
        if not _has_gpu():
            raise MissingDependencyError(f"no NVIDIA GPU: {_DRIVER} finds none")
        return str(onnxruntime.__version__)

    def refusal(self, manifest: Manifest) -> str | None:
        """Return why the artifact is none of its own, which are ONNX ones in fp16."""
        options = manifest.recipe.get("options", {})
        half = isinstance(options, dict) and options.get("precision") == "float16"
        return super().refusal(manifest) or (None if half else "it runs graphs in fp16: onnx-fp16, onnx-q4f16")

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> CudaSession:
        """Load an artifact for one conversation. ArtifactError names nodes that would fall back to the CPU."""
        self.version()  # without a GPU onnxruntime would silently take the CPU
        import onnxruntime

        onnxruntime.preload_dlls()  # CUDA's libraries from NVIDIA's wheels, which no loader's path leads to
        return CudaSession(folder, manifest, threads=threads)

    def load_library(self) -> None:
        """Import onnxruntime, and onnx, which the file is read with before."""
        super().load_library()
        import onnx  # noqa: F401


RUNTIME = OnnxRuntimeCuda()


class CudaSession(DeviceSession):
    """One conversation, batch 1 (see `Session`), its state in the GPU's memory."""

    runtime = "onnxruntime-cuda"
    _providers = (_PROVIDER, "CPUExecutionProvider")
    _device = "cuda"

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        super().__init__(folder, manifest, threads=threads)
        refuse(self.fallen(self._providers[0]), self._providers[0])


def _has_gpu() -> bool:
    """Whether the driver answers with at least one device: NVIDIA's CUDA driver API, cuInit and cuDeviceGetCount."""
    import ctypes

    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
