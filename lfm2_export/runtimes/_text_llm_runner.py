"""ExecuTorch's stock TextLLMRunner, the C++ loop behind Android's LlmModule: text in, text out, state in the `.pte`.

It runs in a process of its own: it prints what it generates on stdout whoever is listening, and a file it cannot
stomach ends the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lfm2_export.errors import ArtifactError
from lfm2_export.progress.native_output import silenced

_STOP = "<|im_end|>"  # streamed visibly by the runner


def generate(pte: Path, tokenizer: Path, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy replies to `prompts`, loaded once, with `reset()` between them; the end-of-turn marker is cut off.

    Raises ArtifactError when the runner refuses or does not survive the model or the tokenizer.
    """
    request = json.dumps([str(pte), str(tokenizer), list(prompts), max_new_tokens])
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    alone = os.environ | {"MKL_NUM_THREADS": "1"}  # see _one_thread.py
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, env=alone)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ArtifactError(f"{pte}: TextLLMRunner: {last[:200]}")
    return list(json.loads(done.stdout))


def _serve() -> None:
    """The worker: one JSON request on stdin, one JSON reply on stdout."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers attention and cache kernels
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

    pte, tokenizer, prompts, max_new_tokens = json.load(sys.stdin)
    config = GenerationConfig(echo=False, max_new_tokens=max_new_tokens, temperature=0.0)
    replies = []
    with silenced(1):
        runner = TextLLMRunner(pte, tokenizer)
        for prompt in prompts:
            pieces: list[str] = []
            runner.reset()
            runner.generate(prompt, config, pieces.append)
            replies.append("".join(pieces).partition(_STOP)[0])
    print(json.dumps(replies), flush=True)


if __name__ == "__main__":
    _serve()
