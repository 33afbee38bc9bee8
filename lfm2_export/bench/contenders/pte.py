"""A bare ExecuTorch `.pte` of the stock LLM runners' signature: forward(tokens, start position) → logits.

What ExecuTorch's own `export_llm` writes; our resident form is driven as an artifact instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lfm2_export.bench.contenders import CALL
from lfm2_export.bench.spec import Spec
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.runtimes import _pte, executorch
from lfm2_export.runtimes._huge_pages import HugePages
from lfm2_export.runtimes._one_thread import one_thread

_FILLER = 1


def prepare(spec: Spec, threads: int) -> None:
    """Import ExecuTorch and size its thread pool, before a program captures it."""
    _pte.set_threads(threads)


def load(spec: Spec, threads: int, room: int) -> PteContender:
    """Load the file. ArtifactError when ExecuTorch refuses it or it does not tell its sizes."""
    return PteContender(spec.path)


class PteContender:
    """The caller's side of a program that keeps its state to itself."""

    weight_bytes = None  # the file's embedding table is not read whole, and the file does not say how large it is
    cache_bytes = None

    def __init__(self, path: Path) -> None:
        from executorch.extension.pybindings import portable_lib

        self.runtime = f"executorch {executorch.RUNTIME.version()}"
        self.size = path.stat().st_size
        try:
            self._module = portable_lib._load_for_executorch(str(path))
            self.window = self._constant("get_max_context_len")
            self.vocab = self._constant("get_vocab_size")
            self._call = min(CALL, self._constant("get_max_seq_len") - 1)  # export_llm's bound is one below its name
        except RuntimeError as error:
            raise ArtifactError(f"{path}: not a stock LLM program: {one_line(error)}") from error
        self._position = 0
        self._pages: HugePages | None = HugePages()  # until the first call, for a fair race too

    def stand(self, position: int) -> None:
        """Going back is free: later keys are overwritten, and only the conv state is then another conversation's.

        Going on is not: memory that nobody wrote reads faster than a cache does.
        """
        self._position = min(position, self._position)
        if position > self._position:
            self.feed([_FILLER] * (position - self._position))

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        for start in range(0, len(tokens), self._call):
            chunk = tokens[start : start + self._call]
            with one_thread():  # what our own Session does, for a fair race
                (logits,) = self._module.run_method("forward", [torch.tensor([chunk]), torch.tensor([self._position])])
            self._position += len(chunk)
            if self._pages is not None:
                self._pages.adopt()
                self._pages = None
        return logits.flatten()[-self.vocab :].numpy()

    def stages(self, context: int, steps: int) -> None:
        return None

    def _constant(self, name: str) -> int:
        return int(self._module.run_method(name, [])[0])
