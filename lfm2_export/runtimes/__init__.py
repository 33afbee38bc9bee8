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
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import UsageError
from lfm2_export.runtimes.session import Session

_NOT_RUNTIMES = {"session", "eager"}  # the protocol, and the reference that needs a checkpoint
_MAIN = ("executorch", "onnxruntime")  # each target's own, which shows its state; libraries upon them come after


class Runtime(Protocol):
    def version(self) -> str: ...

    def runs(self, manifest: Manifest) -> bool: ...

    def open_session(self, folder: Path, manifest: Manifest) -> Session: ...

    def weights_session(self, folder: Path, manifest: Manifest) -> Session | None: ...

    def reference_session(self, folder: Path, manifest: Manifest) -> Session | None: ...


def names() -> list[str]:
    """Every runtime, by name."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in found if name not in _NOT_RUNTIMES)


def able(manifest: Manifest) -> list[str]:
    """Every runtime meant for such an artifact, installed or not, the target's own first."""
    return sorted((name for name in names() if find(name).runs(manifest)), key=lambda name: (name not in _MAIN, name))


def find(name: str) -> Runtime:
    """The runtime of that name. UsageError for an unknown one."""
    if name not in names():
        raise UsageError(f"unknown runtime {name!r}; known: {', '.join(names())}")
    return cast(Runtime, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
