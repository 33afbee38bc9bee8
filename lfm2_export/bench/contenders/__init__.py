"""What can be measured. One module per kind of contender, all behind `Contender`.

A module has two functions, called in this order in a process of its own:

- `prepare(spec, threads)`: import the library and hold it to that many threads;
- `load(spec, threads, room)`: load the model; `room` is the most tokens that will be asked for, for runtimes that
  size their cache when they load.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from lfm2_export.bench.drafted import Drafted
from lfm2_export.bench.spec import Spec

CALL = 512  # tokens a call, where the contender leaves the choice to its caller


@runtime_checkable
class Drafting(Protocol):
    """A contender that can verify drafts."""

    def drafted(self, draft: str) -> Drafted:
        """Measure a reply with drafts from there. UsageError where there can be none."""
        ...


class Contender(Protocol):
    """A loaded model and one conversation. Whoever returns from a call has its logits."""

    runtime: str  # library and version
    window: int  # tokens
    vocab: int
    size: int  # bytes of the model's files

    @property
    def weight_bytes(self) -> int | None:
        """Return the bytes of weights that a decode step must read; None where nobody can tell."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Return the bytes of KV cache that a decode step must read, per token of context."""
        ...

    def stand(self, position: int) -> None:
        """Be at that position, whatever the conversation before it was: speed does not depend on what was said."""
        ...

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Go on with these tokens, at least one; return the logits after the last, `[vocab] fp32`.

        They may lie in the library's own memory: until the next call.
        """
        ...

    def stages(self, context: int, steps: int) -> dict[str, float] | None:
        """Return the share of a decode step that each kind of operator takes; None where nothing here can tell."""
        ...


class Memory(NamedTuple):
    """The memory of the process that holds the model, in bytes."""

    baseline: int  # with its library, before the model
    peak: int  # so far


@runtime_checkable
class InOwnProcess(Protocol):
    """A contender whose model lives in a process of its own: not this one's memory is what counts."""

    def memory(self) -> Memory: ...


class Kind(Protocol):
    def prepare(self, spec: Spec, threads: int) -> None: ...

    def load(self, spec: Spec, threads: int, room: int) -> Contender: ...


def find(kind: str) -> Kind:
    """The module of that kind."""
    return cast(Kind, importlib.import_module(f"{__name__}.{kind.replace('-', '_')}"))
