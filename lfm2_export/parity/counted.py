"""A session whose calls a bar is told of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfm2_export.parity.work import Work
from lfm2_export.progress import Progress
from lfm2_export.runtimes.session import Session, Snapshot


class Counted(Session):
    """Another session, as it is; every call advances the stage under way."""

    def __init__(self, session: Session, work: Work, progress: Progress) -> None:
        self._session, self._work, self._progress = session, work, progress
        self.runtime, self.version, self.window = session.runtime, session.version, session.window
        self.pads, self.has_state, self.verifies = session.pads, session.has_state, session.verifies

    @property
    def position(self) -> int:
        return self._session.position

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        logits = self._session.prefill(tokens, pad_to)
        self._progress.advance(self._work.call(len(tokens)))
        return logits

    def decode(self, token: int) -> np.ndarray:
        logits = self._session.decode(token)
        self._progress.advance(self._work.call(1))
        return logits

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        logits = self._session.verify(tokens)
        self._progress.advance(self._work.call(len(tokens)))
        return logits

    def keep(self, count: int) -> None:
        self._session.keep(count)

    def reset(self) -> None:
        self._session.reset()

    def state(self) -> Snapshot:
        return self._session.state()

    def restore(self, snapshot: Snapshot) -> None:
        self._session.restore(snapshot)
