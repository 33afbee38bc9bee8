"""A session as a proof holds it: a bar hears of its calls, and its memory is let go of between its turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lfm2_export.parity.work import Work
from lfm2_export.progress import Progress
from lfm2_export.quantize.freed_memory import SMALL, return_at_once
from lfm2_export.runtimes.session import Session, Snapshot


class Counted(Session):
    """Another session, as it is; every call advances the stage under way.

    `again` opens it once more after a rest; without, it never rests.
    """

    def __init__(
        self, session: Session, work: Work, progress: Progress, again: Callable[[], Session] | None = None
    ) -> None:
        self._open: Session | None = session
        self._again, self._work, self._progress = again, work, progress
        self.runtime, self.version, self.window = session.runtime, session.version, session.window
        self.pads, self.has_state, self.verifies = session.pads, session.has_state, session.verifies
        self.takes_images = session.takes_images

    def rest(self) -> None:
        """Let go of the session, conversation and all, until the next call."""
        if self._again is not None:
            self._open = None
            return_at_once(SMALL)

    @property
    def _session(self) -> Session:
        if self._open is None:
            assert self._again is not None
            self._open = self._again()
        return self._open

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

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return self._session.encode(patches, rows, columns)

    def prefill_with_images(self, tokens: Sequence[int], images: np.ndarray) -> np.ndarray:
        logits = self._session.prefill_with_images(tokens, images)
        self._progress.advance(self._work.call(len(tokens)))
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
