"""States to go back to, turn after turn, at the price of one: each keeps only the columns written since its parent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lfm2_export.model.state import is_cache
from lfm2_export.runtimes.session import Snapshot


@dataclass(frozen=True)
class IncrementalSnapshot:
    """A state in a chain: a session writes keys and values once, so below `parent.position` both have the same.

    `tensors`: conv states whole; keys and values only the columns from the parent's position (else 0) to `position`.
    """

    parent: IncrementalSnapshot | None
    position: int
    tensors: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def after(cls, parent: IncrementalSnapshot | None, snapshot: Snapshot) -> IncrementalSnapshot:
        """Keep a state that came from `parent`'s by feeding tokens alone (None: from anything)."""
        start = parent.position if parent else 0
        tensors = {
            name: tensor[:, :, start:].copy() if is_cache(name) else tensor for name, tensor in snapshot.tensors.items()
        }
        return cls(parent, snapshot.position, tensors)

    def snapshot(self) -> Snapshot:
        """The whole state, to restore."""
        chain = self._chain()
        tensors = {
            name: np.concatenate([part.tensors[name] for part in chain], axis=2) if is_cache(name) else tensor
            for name, tensor in self.tensors.items()
        }
        return Snapshot(self.position, tensors)

    def _chain(self) -> list[IncrementalSnapshot]:
        """From the oldest ancestor to this one."""
        chain: list[IncrementalSnapshot] = []
        part: IncrementalSnapshot | None = self
        while part is not None:
            chain.append(part)
            part = part.parent
        return chain[::-1]
