"""A GGUF in llama.cpp as a session that verifies drafts, by its C API: for the loop that our own artifacts run in.

llama.cpp keeps a recurrent state behind each of the last tokens where `n_rs_seq` asks for it, and can then let go of so
many tokens (`llama_memory_seq_rm`); by default it keeps one state and refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.bench.contenders import gguf
from lfm2_export.bench.spec import parse
from lfm2_export.runtimes.session import Session, check_draft, check_kept, check_room


class LlamaCpp(Session):
    """One conversation, batch 1 (see `Session`). Its fp16 cache holds at most 2048 tokens."""

    runtime = "llama.cpp"
    verifies = 16
    has_state = False

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        gguf.prepare(parse(str(path)), threads)
        self._lib: Any = llama_cpp
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        self.vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self.window = min(2048, int(llama_cpp.llama_model_n_ctx_train(model)))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self.window
        options.n_threads = options.n_threads_batch = threads
        options.n_rs_seq = self.verifies
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._batch = llama_cpp.llama_batch_init(self.window, 0, 1)
        self._position = self._verified = 0

    @property
    def position(self) -> int:
        return self._position

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self._let_go(0)
        logits = self._call(tokens, first=len(tokens) - 1)[0]
        self._position += len(tokens)
        return logits

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        check_draft(len(tokens), self.verifies)
        self._let_go(0)
        logits = self._call(tokens, first=0)
        self._verified = len(tokens)
        return logits

    def keep(self, count: int) -> None:
        check_kept(count, self._verified)
        self._let_go(count)

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._memory, True)
        self._position = self._verified = 0

    def _let_go(self, kept: int) -> None:
        """Of the verified tokens take the first ones into the conversation, and no others."""
        rejected, self._position = self._verified - kept, self._position + kept
        self._verified = 0
        if rejected and not self._lib.llama_memory_seq_rm(self._memory, 0, self._position, -1):
            raise RuntimeError(f"llama.cpp does not let go of {rejected} tokens")

    @property
    def _memory(self) -> Any:
        return self._lib.llama_get_memory(self._context)

    def _call(self, tokens: Sequence[int], first: int) -> np.ndarray:
        """The logits from the token number `first` on."""
        check_room(self._position, len(tokens), self.window, self.vocab, tokens)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.logits[at] = token, self._position + at, at >= first
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        if (status := self._lib.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {status} at position {self._position}")
        rows = [self._lib.llama_get_logits_ith(self._context, at) for at in range(first, len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocab,)) for row in rows])
