"""The checkpoint in bf16 through transformers: what one has without any export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfm2_export.bench.contenders import CALL
from lfm2_export.bench.spec import Spec
from lfm2_export.checkpoint.config import read_config
from lfm2_export.model.state import cache_bytes

_FILLER = 1


def prepare(spec: Spec, threads: int) -> None:
    """Import the library and hold torch to `threads`."""
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()


def load(spec: Spec, threads: int, room: int) -> EagerContender:
    """Load the checkpoint; its cache grows as it goes, whatever `room` is."""
    return EagerContender(spec.path)


class EagerContender:
    """The eager model of transformers, of whichever family the checkpoint is, with its own cache."""

    def __init__(self, path: Path) -> None:
        import transformers

        config = read_config(path / "config.json")  # which refuses what is no decoder before weights are looked for
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.runtime = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.window, self.vocab = config.max_position_embeddings, config.vocab_size
        self.size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        embedding = self._model.get_input_embeddings().weight
        tied = self._model.get_output_embeddings().weight is embedding
        read = sum(tensor.numel() for tensor in self._model.parameters()) - (0 if tied else embedding.numel())
        self.weight_bytes: int | None = 2 * read
        self.cache_bytes: int | None = cache_bytes(config, "bfloat16")
        self._cache: Any = None
        self._position = 0

    def stand(self, position: int) -> None:
        if position < self._position:
            self._cache, self._position = None, 0
        if position > self._position:
            self.feed([_FILLER] * (position - self._position))

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        for start in range(0, len(tokens), CALL):
            chunk = torch.tensor([tokens[start : start + CALL]])
            done = self._model(chunk, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = done.past_key_values
            self._position += chunk.shape[1]
        return done.logits[0, -1].float().numpy()

    def stages(self, context: int, steps: int) -> None:
        return None
