"""A GGUF through llama.cpp, by its C API: the same calls, batch sizes and threads as llama.cpp's own benchmark."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.bench.contenders import CALL
from lfm2_export.bench.spec import Spec
from lfm2_export.errors import ArtifactError

_FILLER = 1
_PROBE = (64, 256)  # tokens; the state's growth between them is the KV cache of the difference


def prepare(spec: Spec, threads: int) -> None:
    """Import the library and silence it."""
    import llama_cpp

    llama_cpp.llama_log_set(_silent, None)
    llama_cpp.llama_backend_init()


def load(spec: Spec, threads: int, room: int) -> GgufContender:
    """Load the model with a cache of `room` tokens. ArtifactError when llama.cpp refuses it."""
    return GgufContender(spec.path, threads, room)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


class GgufContender:
    """llama.cpp's CPU backend with its defaults: fp16 KV cache, flash attention as it sees fit."""

    def __init__(self, path: Path, threads: int, room: int) -> None:
        import llama_cpp

        self._lib = llama_cpp
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        if not model:
            raise ArtifactError(f"{path}: llama.cpp {llama_cpp.__version__} cannot load it")
        self.runtime = f"llama-cpp-python {llama_cpp.__version__}"
        self.size = path.stat().st_size
        self.window = int(llama_cpp.llama_model_n_ctx_train(model))
        self.vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self.weight_bytes: int | None = int(llama_cpp.llama_model_size(model))  # LFM2 ties embedding and head

        options = llama_cpp.llama_context_default_params()
        options.n_ctx = min(max(room, _PROBE[-1]), self.window)
        options.n_batch = options.n_ubatch = CALL
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise ArtifactError(f"{path}: llama.cpp {llama_cpp.__version__} cannot hold {options.n_ctx} tokens")
        self._position = 0
        self._saved_at = 0
        self._saved: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * 0)()

    def stand(self, position: int) -> None:
        """Fill the cache up to there once; the conv state cannot be rewound, so that state is kept and put back."""
        if position < self._position:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            self._position = 0
        if position and position == self._saved_at:
            self._lib.llama_state_seq_set_data(self._context, self._saved, len(self._saved), 0)
            self._position = position
        elif position > self._position:
            self.feed([_FILLER] * (position - self._position))
            self._save()

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        for start in range(0, len(tokens), CALL):
            chunk = tokens[start : start + CALL]
            array = (self._lib.llama_token * len(chunk))(*chunk)
            status = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(chunk)))
            if status != 0:
                raise ArtifactError(f"llama_decode returned {status} at position {self._position}")
            self._position += len(chunk)
        logits = self._lib.llama_get_logits_ith(self._context, -1)  # waits until they are there
        return np.ctypeslib.as_array(logits, (self.vocab,))

    def stages(self, context: int, steps: int) -> None:
        return None

    def _save(self) -> None:
        size = self._lib.llama_state_seq_get_size(self._context, 0)
        self._saved = (ctypes.c_uint8 * size)()
        self._lib.llama_state_seq_get_data(self._context, self._saved, size, 0)
        self._saved_at = self._position

    @cached_property
    def cache_bytes(self) -> int | None:
        """Measured only when asked: that takes steps, and a load is timed until the first of them."""
        sizes: list[int] = []
        for position in _PROBE:
            self.stand(position)
            sizes.append(len(self._saved))
        self.stand(0)
        return (sizes[1] - sizes[0]) // (_PROBE[1] - _PROBE[0])
