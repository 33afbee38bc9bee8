"""onnxruntime on a GPU through WebGPU: the same kernels as in a browser, here over Vulkan, Direct3D or Metal.

Its library is an onnxruntime plugin of its own (extra `webgpu`). A driver that computes on the CPU is taken as well and
called "software": it proves the kernels and says nothing of speed. Whether the device computes long prompts is tried
when a session opens; where it does not, prompts go in chunks that it does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, MissingDependencyError
from lfm2_export.runtimes import onnxruntime
from lfm2_export.runtimes._attention_check import CHUNK, LIMIT, Found, Heads, try_attention
from lfm2_export.runtimes._device_session import DeviceSession, refuse
from lfm2_export.runtimes._vulkan import gpus
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import check_room

_PACKAGE = "onnxruntime-ep-webgpu"
_PROVIDER = "WebGpuExecutionProvider"
_BLOCK = 128  # inputs to a scale where a product's input is rounded to int8
# Unpacks the looked-up rows of a 4-bit embedding, a few bytes a token, where the recipe has `fused_embedding: false`
# (transformers.js on WebAssembly needs that): these operators have no kernels for bytes on any GPU.
_ON_CPU = frozenset(f"embed_tokens/{name}" for name in ("low", "high", "low_last", "high_last", "pairs"))


class WebGpu(Runtime):
    """The library on the GPU that Dawn prefers."""

    name = "webgpu"
    targets = ("onnx",)
    taken = "on request"
    computes_on = "GPU"
    # nano at fp16 is 11 times as far from eager as noise is, of which twice is allowed, and its KLD 6.9 times the limit
    half_sums: ClassVar[Mapping[int, float]] = {16: 8.0}

    def version(self) -> str:
        """Return the versions of onnxruntime and the plugin, and the adapter.

        Raises MissingDependencyError if the plugin or a GPU is absent.
        """
        try:
            plugin = version(_PACKAGE)
        except PackageNotFoundError as error:
            raise MissingDependencyError(f"{_PACKAGE} is not installed; pip install 'lfm2-export[webgpu]'") from error
        return f"{onnxruntime.RUNTIME.version()}, webgpu {plugin} on {adapter()}"

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> WebGpuSession:
        """Load an artifact for one conversation.

        ArtifactError names nodes that would fall back to the CPU, and tells a GPU that computes attention wrongly.
        """
        return WebGpuSession(folder, manifest, threads=threads)

    def weights_session(self, folder: Path, manifest: Manifest) -> WebGpuSession:
        """Load the same file with activations and states in fp32, its matrices taking their inputs unrounded."""
        return WebGpuSession(folder, manifest, float_activations=True)

    def activation_block(self, outputs: int, inputs: int, group: int) -> int | None:
        """Return 128, whatever the weight's group, where the integer kernel fits the matrix; else None.

        Metal is never given the integer kernel.
        """
        fits = inputs % _BLOCK == 0 and outputs % 16 == 0 and sys.platform != "darwin"
        return _BLOCK if fits else None

    def load_library(self) -> None:
        """Import onnxruntime and register the plugin."""
        _device()


RUNTIME = WebGpu()


class WebGpuSession(DeviceSession):
    """One conversation, batch 1 (see `Session`), its state in the GPU's memory."""

    runtime = "webgpu"
    _providers = ()
    _device = "webgpu"
    _turns_int8_in_every_call = False

    def __init__(
        self, folder: Path, manifest: Manifest, float_activations: bool = False, threads: int | None = None
    ) -> None:
        described = RUNTIME.version()
        super().__init__(folder, manifest, float_activations=float_activations, threads=threads)
        self.version = described
        fallen = self.fallen(_PROVIDER)
        refuse([node for node in fallen if node.name not in _ON_CPU], "WebGPU")
        self._chunk: int | None = None
        self.notes = (f"nodes on the CPU: {', '.join(map(str, fallen))}",) if fallen else ()
        keys = [buffer for name, buffer in self._buffers.items() if _is_key(name) and name not in self._axes]
        for _, heads, _, width in {buffer.shape for buffer in keys}:
            self._take(try_attention(Heads(heads, width, keys[0].dtype == np.float16), _device()))

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        """Go on with a chunk, computed whole or piece by piece; padding never makes a piece longer than it may be."""
        most = self._chunk
        if most is None:
            return super().prefill(tokens, pad_to)
        check_room(self.position, len(tokens), self.window, self._logits.shape[2], tokens)
        for start in range(0, len(tokens), most):
            logits = super().prefill(tokens[start : start + most], pad_to and min(pad_to, most))
        return logits

    def _take(self, found: Found) -> None:
        if found.chunked > LIMIT:
            raise ArtifactError(
                f"{self.version} computes attention wrongly, by {found.chunked:.2g} even for {CHUNK} tokens: "
                "update the driver, or use --runtime onnxruntime"
            )
        self._chunk, self.checks = found.chunk, found.checks()
        self.notes = (*self.notes, str(found))

    def _configure(self, options: Any) -> None:
        super()._configure(options)
        options.add_provider_for_devices([_device()], {})


def adapter() -> str:
    """Return the GPU's name and driver, with "(software)" where it is none.

    Raises MissingDependencyError if there is no GPU. Only Vulkan is asked; elsewhere the system's own is named.
    """
    if sys.platform in ("win32", "darwin"):
        return "Direct3D 12" if sys.platform == "win32" else "Metal"
    found = gpus()
    if not found:
        raise MissingDependencyError(
            "no GPU: Vulkan's loader finds none; install your GPU's driver, "
            "or one in software (Debian from 13, Ubuntu from 24.04): apt install libvulkan1 mesa-vulkan-drivers"
        )
    return str(found[0])


def described() -> str:
    """Return adapter, driver and how they compute prompts, tried with nano's heads; or what is missing for it."""
    try:
        return f"{RUNTIME.version()}; {try_attention(Heads(2, 32), _device())}"
    except MissingDependencyError as error:
        return str(error)


@cache
def _device() -> Any:
    """The device to open sessions on; the plugin is registered once in a process."""
    os.environ.setdefault("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    import onnxruntime
    import onnxruntime_ep_webgpu

    onnxruntime.set_default_logger_severity(3)  # errors only: it warns of the variable just set
    onnxruntime.register_execution_provider_library("webgpu", onnxruntime_ep_webgpu.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]
    gpu = onnxruntime.OrtHardwareDeviceType.GPU
    return min(devices, key=lambda device: device.device.type != gpu)  # a GPU before the CPU that stands in for one


def _is_key(name: str) -> bool:
    """Whether a buffer holds the keys that the GPU's own attention operator reads."""
    return name.startswith("past_key_values.") and name.endswith(".key")
