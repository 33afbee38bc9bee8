"""The same C++ runner, built for ARM64 and emulated by qemu: the very kernels that phones use, one processor at a time.

Each processor is a runtime of its own, `arm64/cortex-a53` and so on, because XNNPACK chooses its int8 kernels by what
the processor has. The emulator computes as the hardware does and says nothing about its speed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes import _runner, native
from lfm2_export.runtimes.executorch import version as executorch_version
from lfm2_export.runtimes.native import runs as runs
from lfm2_export.runtimes.session import Session

# processor → qemu's name for it and what its int8 kernels are built on; sme=off because qemu 7.2 computes int8
# products wrongly with SME on, which its plain `max` has
PROCESSORS = {
    "cortex-a53": ("cortex-a53", "NEON alone"),
    "cortex-a76": ("cortex-a76", "dot product"),
    "max": ("max,sme=off", "dot product and i8mm"),
}
_DEFAULT = "cortex-a76"


@dataclass(frozen=True)
class Processor:
    """One emulated processor, as a runtime (see `runtimes/__init__.py`)."""

    name: str

    def version(self) -> str:
        return version()

    def runs(self, manifest: Manifest) -> bool:
        return runs(manifest)

    def open_session(self, folder: Path, manifest: Manifest) -> Session:
        runtime = f"arm64/{self.name}"
        command: list[str | Path]
        command = [_emulator(), "-cpu", PROCESSORS[self.name][0], "-L", _libraries(), _runner.program("aarch64")]
        # a second thread would only compete for the emulator's locks
        return native.RunnerSession(runtime, version(), command, folder, manifest, threads=1, emulated=True)

    def weights_session(self, folder: Path, manifest: Manifest) -> Session | None:
        return None

    def reference_session(self, folder: Path, manifest: Manifest) -> Session | None:
        return None

    def twin_session(self, folder: Path, manifest: Manifest) -> Session:
        """The same program on this machine's own processor."""
        return native.open_session(folder, manifest)


def processors() -> dict[str, Processor]:
    """Each emulated processor, by name."""
    return {name: Processor(name) for name in PROCESSORS}


def version() -> str:
    """Of the executorch it is built on; MissingDependencyError if the runner or the emulator is absent."""
    _runner.program("aarch64")
    _emulator()
    native.version()  # what it is compared with
    return executorch_version()


def open_session(folder: Path, manifest: Manifest) -> Session:
    """Start the runner on one of the processors, for one conversation."""
    return Processor(_DEFAULT).open_session(folder, manifest)


def weights_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: XNNPACK's int8 kernels round their inputs, whatever one asks."""
    return None


def reference_session(folder: Path, manifest: Manifest) -> Session | None:
    """None: eager PyTorch computes what the file does."""
    return None


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
