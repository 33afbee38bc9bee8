"""What executes an artifact. One file per runtime, found by its name (`_` read as `-`), holds a subclass of `Runtime`
and calls its one instance RUNTIME.

`runtime.py` says what a runtime says of itself and must do, `session.py` what a loaded artifact does. `parity`, `bench`
and `chat` know no more of it, so adding a runtime is adding a file. Files that begin with `_` are parts of runtimes;
`eager.py` is the reference, a session without a runtime: it needs a checkpoint instead of an artifact.
"""

from __future__ import annotations

import importlib
import pkgutil

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError, UsageError, nearest
from lfm2_export.runtimes.runtime import Runtime

__all__ = ["Runtime", "able", "answering", "check_runs", "each_processor", "find", "first", "names", "usual"]

_NOT_RUNTIMES = {"runtime", "session", "eager"}
_ORDER = ("first", "always", "on request")


def names() -> list[str]:
    """Return every runtime's name, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in found if name not in _NOT_RUNTIMES)


def able(manifest: Manifest) -> list[str]:
    """Return the name of every runtime meant for such an artifact, installed or not, its target's own first."""
    able = [runtime for runtime in map(find, names()) if runtime.runs(manifest)]
    return [runtime.name for runtime in sorted(able, key=lambda each: (_ORDER.index(each.taken), each.name))]


def check_runs(name: str, manifest: Manifest) -> None:
    """Raise UsageError, with the reason, unless the runtime of that name is meant for such an artifact."""
    if (reason := find(name).refusal(manifest)) is not None:
        who = f"; able: {', '.join(found)}" if (found := able(manifest)) else ""
        raise UsageError(f"runtime {name!r} does not run this artifact: {reason}{who}")


def usual(manifest: Manifest) -> list[str]:
    """Return those of `able` that every proof goes through: all but the ones that must be named."""
    return [name for name in able(manifest) if find(name).taken != "on request"]


def first(manifest: Manifest) -> Runtime:
    """Return the runtime that an artifact is executed with when none is named. UsageError if there is none at all."""
    for name in able(manifest):
        return find(name)
    raise UsageError(f"no runtime here executes {manifest.target} artifacts of {manifest.form} form")


def answering(manifest: Manifest) -> Runtime:
    """Return the `first` runtime or, where that is absent and another stands in for it, the other."""
    own = first(manifest)
    try:
        own.version()
    except MissingDependencyError:
        return next((each for each in map(find, able(manifest)) if each.stands_in), own)
    return own


def each_processor(name: str) -> list[str]:
    """Return a runtime's name or, where it emulates several processors, one for each: `arm64/cortex-a53`, …"""
    return [f"{name}/{processor}" for processor in find(name).processors] or [name]


def find(name: str) -> Runtime:
    """Return the runtime of that name. UsageError for an unknown one, or an unknown processor of it."""
    module, _, processor = name.partition("/")
    if module not in names():
        raise UsageError(f"unknown runtime {name!r}{nearest(module, names())}; known: {', '.join(names())}")
    found = importlib.import_module(f"{__name__}.{module.replace('-', '_')}").RUNTIME
    assert isinstance(found, Runtime)
    if not processor:
        return found
    if processor not in found.processors:
        known = f"known: {', '.join(found.processors)}" if found.processors else "it has none to choose from"
        raise UsageError(f"runtime {module!r} has no processor {processor!r}; {known}")
    return found.processors[processor]
