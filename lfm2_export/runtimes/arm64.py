"""The same C++ runner, built for ARM64 and emulated by qemu: the very kernels that phones use, one processor at a time.

Each processor is a runtime of its own, `arm64/cortex-a53` and so on, because XNNPACK chooses its int8 kernels by what
the processor has. The emulator computes as the hardware does and says nothing about its speed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes import _runner, executorch, native
from lfm2_export.runtimes._runner_session import RunnerSession
from lfm2_export.runtimes.runtime import Runtime

# processor → qemu's name for it and what its int8 kernels are built on; sme=off because qemu 7.2 computes int8
# products wrongly with SME on, which its plain `max` has
PROCESSORS = {
    "cortex-a53": ("cortex-a53", "NEON alone"),
    "cortex-a76": ("cortex-a76", "dot product"),
    "max": ("max,sme=off", "dot product and i8mm"),
}
_DEFAULT = "cortex-a76"


class Processor(Runtime):
    """`lfm2_runner` on one emulated processor."""

    targets = ("xnnpack",)
    taken = "on request"
    emulates = "CPU"

    def __init__(self, processor: str) -> None:
        self.name = self._place = f"arm64/{processor}"
        self._cpu = PROCESSORS[processor][0]

    def version(self) -> str:
        """Return the version of the executorch it is built on. MissingDependencyError without runner or emulator."""
        _runner.program("aarch64")
        _emulator()
        native.RUNTIME.version()  # what it is compared with
        return executorch.RUNTIME.version()

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> RunnerSession:
        """Start an emulated runner for one conversation, on one thread: others would compete for qemu's locks."""
        return RunnerSession(self._place, self.version(), self.command(), folder, manifest, threads=1)

    def command(self) -> list[str | Path]:
        """Return the words that start the emulated runner. MissingDependencyError without runner or emulator."""
        return [_emulator(), "-cpu", self._cpu, "-L", _libraries(), _runner.program("aarch64")]

    def twin_session(self, folder: Path, manifest: Manifest) -> RunnerSession:
        """Start the same program on this machine's own processor."""
        return native.RUNTIME.open_session(folder, manifest)


class Arm64(Processor):
    """All emulated processors; by itself, without a processor's name, a usual one of them."""

    processors: ClassVar[Mapping[str, Runtime]] = {name: Processor(name) for name in PROCESSORS}

    def __init__(self) -> None:
        super().__init__(_DEFAULT)
        self.name = "arm64"


RUNTIME = Arm64()


def _emulator() -> Path:
    unpacked = _runner.folder() / "debian" / "usr" / "bin" / "qemu-aarch64-static"
    if unpacked.is_file():
        return unpacked
    if found := shutil.which("qemu-aarch64-static"):
        return Path(found)
    raise MissingDependencyError("qemu-aarch64-static is missing; make runner, or apt-get install qemu-user-static")


def _libraries() -> Path:
    """ARM64's C and C++ libraries: where the emulator looks for what a program is linked with."""
    return _runner.folder() / "debian" / "usr" / "aarch64-linux-gnu"
