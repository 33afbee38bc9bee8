"""What can execute an artifact. One module per runtime, found by its file name (`_` read as `-`), all behind `Session`.

A runtime module has five functions, the whole of what `parity` and `chat` know of it:

- `version() -> str`: of the installed library; MissingDependencyError (with the command that installs it) if absent;
- `runs(manifest) -> bool`: whether this runtime is meant for such an artifact;
- `open_session(folder, manifest) -> Session`: load it;
- `weights_session(folder, manifest) -> Session | None`: the same files with activations in float, to judge the stored
  weights without the noise of rounded activations; None where the runtime cannot;
- `reference_session(folder, manifest) -> Session | None`: the same quantized arithmetic through something trusted on
  this machine, where eager PyTorch has none to compare with (activations on static integers); None where eager does.

A session whose `emulated` is true stands in for hardware, at a hundredth of its speed: `parity` asks it less.

A module for several processors has a sixth function, `processors()`, which gives a runtime for each by name; they are
found as `arm64/cortex-a53`. Such a runtime has `twin_session(folder, manifest)`: the same program on this machine's own
processor, which it is compared with as well.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import UsageError
from lfm2_export.runtimes.session import Session

_NOT_RUNTIMES = {"session", "eager"}  # the protocol, and the reference that needs a checkpoint
_MAIN = ("executorch", "onnxruntime")  # each target's own, which shows its state; libraries upon them come after
# the target's own file and kernels once more: parity takes them when they are named
_ON_REQUEST = {"native", "arm64", "onnxruntime-packed"}


class Runtime(Protocol):
    def version(self) -> str: ...

    def runs(self, manifest: Manifest) -> bool: ...

    def open_session(self, folder: Path, manifest: Manifest) -> Session: ...

    def weights_session(self, folder: Path, manifest: Manifest) -> Session | None: ...

    def reference_session(self, folder: Path, manifest: Manifest) -> Session | None: ...


@runtime_checkable
class Emulated(Runtime, Protocol):
    """A runtime that is one processor of a module's `processors()`."""

    def twin_session(self, folder: Path, manifest: Manifest) -> Session: ...


def names() -> list[str]:
    """Every runtime, by name."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in found if name not in _NOT_RUNTIMES)


def able(manifest: Manifest) -> list[str]:
    """Every runtime meant for such an artifact, installed or not, the target's own first."""
    return sorted((name for name in names() if find(name).runs(manifest)), key=lambda name: (name not in _MAIN, name))


def usual(manifest: Manifest) -> list[str]:
    """Those of `able` that every proof goes through: all but the ones that must be named."""
    return [name for name in able(manifest) if name not in _ON_REQUEST]


def each_processor(name: str) -> list[str]:
    """A runtime's name, or, of a module for several processors, the name of each: `arm64` → `arm64/cortex-a53`, …"""
    return [f"{name}/{processor}" for processor in _processors(find(name))] or [name]


def find(name: str) -> Runtime:
    """The runtime of that name. UsageError for an unknown one."""
    module, _, processor = name.partition("/")
    if module not in names():
        raise UsageError(f"unknown runtime {name!r}; known: {', '.join(names())}")
    found = importlib.import_module(f"{__name__}.{module.replace('-', '_')}")
    if not processor:
        return cast(Runtime, found)
    processors = _processors(found)
    if processor not in processors:
        known = f"known: {', '.join(processors)}" if processors else "it has none to choose from"
        raise UsageError(f"runtime {module!r} has no processor {processor!r}; {known}")
    return processors[processor]


def _processors(module: object) -> dict[str, Emulated]:
    return module.processors() if hasattr(module, "processors") else {}
