"""ExecuTorch's stock runners: TextLLMRunner, the C++ loop behind Android's LlmModule, and MultimodalRunner, which takes
images as well. Text in, text out, state in the `.pte`.

They run in a process of their own: they print what they generate on stdout whoever is listening, and a file they cannot
stomach ends the process.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.errors import ArtifactError
from lfm2_export.progress.native_output import silenced

if TYPE_CHECKING:
    import numpy as np

TEXT, MULTIMODAL = "TextLLMRunner", "MultimodalRunner"
CUT = "\N{REPLACEMENT CHARACTER}"  # ends a reply whose next token is a part of a character: the binding refuses those
_STOP = "<|im_end|>"  # streamed visibly by the runners


def generate(pte: Path, tokenizer: Path, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy replies to `prompts`, loaded once, with `reset()` between them; the end-of-turn marker is cut off.

    Raises ArtifactError when the runner refuses or does not survive the model or the tokenizer.
    """
    return _asked(TEXT, pte, tokenizer, prompts, max_new_tokens)


def generate_with_images(
    pte: Path, tokenizer: Path, prompts: Sequence[Sequence[str | np.ndarray]], max_new_tokens: int
) -> list[str]:
    """The same to prompts of text and images, `[1, 3, height, width] float32` as the processor makes pixels."""
    return _asked(MULTIMODAL, pte, tokenizer, [list(map(_sent, prompt)) for prompt in prompts], max_new_tokens)


def _sent(part: str | np.ndarray) -> str | dict[str, Any]:
    if isinstance(part, str):
        return part
    return {"shape": part.shape, "pixels": base64.b64encode(part.tobytes()).decode()}


def _asked(runner: str, pte: Path, tokenizer: Path, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
    request = json.dumps([runner, str(pte), str(tokenizer), list(prompts), max_new_tokens])
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    alone = os.environ | {"MKL_NUM_THREADS": "1"}  # see _one_thread.py
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, env=alone)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ArtifactError(f"{pte}: {runner}: {last[:200]}")
    return list(json.loads(done.stdout))


def _serve() -> None:
    """The worker: one JSON request on stdin, one JSON reply on stdout."""
    from executorch.extension.llm import runner as library
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers attention and cache kernels
    from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

    name, pte, tokenizer, prompts, max_new_tokens = json.load(sys.stdin)
    config = library.GenerationConfig(echo=False, max_new_tokens=max_new_tokens, temperature=0.0)
    replies = []
    with silenced(1):
        runner = getattr(library, name)(pte, tokenizer)
        for prompt in prompts:
            pieces: list[str] = []
            runner.reset()
            try:
                runner.generate(prompt if name == TEXT else list(map(_input, prompt)), config, pieces.append)
            except UnicodeDecodeError:
                pieces.append(CUT)
            replies.append("".join(pieces).partition(_STOP)[0])
    print(json.dumps(replies), flush=True)


def _input(part: str | dict[str, Any]) -> Any:
    import torch
    from executorch.extension.llm.runner import make_image_input, make_text_input

    if isinstance(part, str):
        return make_text_input(part)
    pixels = bytearray(base64.b64decode(part["pixels"]))
    return make_image_input(torch.frombuffer(pixels, dtype=torch.float32).reshape(part["shape"]))


if __name__ == "__main__":
    _serve()
