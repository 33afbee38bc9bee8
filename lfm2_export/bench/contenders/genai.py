"""A model folder of onnxruntime-genai, as its own builder writes it: `genai_config.json` and what that names.

Our own ONNX artifacts are driven through onnxruntime instead, which is what they are fastest in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.bench.contenders import CALL
from lfm2_export.bench.spec import GENAI, Spec
from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.runtimes import genai

_FILLER = 1


def prepare(spec: Spec, threads: int) -> None:
    """Import the library; it is told the number of threads per model."""
    genai.RUNTIME.version()


def load(spec: Spec, threads: int, room: int) -> GenaiContender:
    """Load the folder with a cache of `room` tokens. ArtifactError when the library refuses it."""
    return GenaiContender(spec.path, threads, room)


class GenaiContender:
    """One generator at a time: its LFM2 cache cannot be rewound, so going back means a new one."""

    weight_bytes = None  # the config does not say how wide the weights are
    cache_bytes = None

    def __init__(self, path: Path, threads: int, room: int) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        try:
            described = json.loads((path / GENAI).read_bytes())["model"]
            config = onnxruntime_genai.Config(str(path))
            options = {"intra_op_num_threads": threads, "log_severity_level": 3}  # 3: errors only
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = onnxruntime_genai.Model(config)
            self.vocab = int(described["vocab_size"])
            self.window = min(room, int(described["context_length"]))
            self._generator = self._new()
        except Exception as error:  # the library's exceptions have no common base of their own
            raise ArtifactError(f"{path}: onnxruntime-genai cannot load it: {one_line(error)}") from error
        self.runtime = f"onnxruntime-genai {genai.RUNTIME.version()}"
        model = str(described["decoder"]["filename"])
        self.size = sum(file.stat().st_size for file in path.glob(f"{model}*"))

    def stand(self, position: int) -> None:
        if self._generator.token_count() > position:
            self._generator = self._new()
        if missing := position - int(self._generator.token_count()):
            self.feed([_FILLER] * missing)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        for start in range(0, len(tokens), CALL):
            self._generator.append_tokens(np.array(tokens[start : start + CALL], dtype=np.int32))
        return self._generator.get_logits()[0, -1]

    def stages(self, context: int, steps: int) -> None:
        return None

    def _new(self) -> Any:
        self._generator = None  # its cache spans the window: never two at once
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self.window, do_sample=False)
        return self._library.Generator(self._model, parameters)
