"""ExecuTorch's TextLLMRunner in a process of its own, one turn a line: it prints what it generates, and may crash.

    python stock_runner_process.py MODEL.pte TOKENIZER.json

Each line of stdin is a JSON object, `{"reset": true}` or `{"generate": text, "sequence_length": n}`, and each line of
stdout answers one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def serve(model: str, tokenizer: str) -> None:
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers attention and cache kernels
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    runner = TextLLMRunner(model, tokenizer)
    for line in sys.stdin:
        call, answer = json.loads(line), {}
        if "reset" in call:
            runner.reset()
        else:
            pieces: list[str] = []
            stats: list[Any] = []
            config = GenerationConfig(echo=False, seq_len=call["sequence_length"], temperature=0.0)
            runner.generate(call["generate"], config, pieces.append, stats.append)
            counts = {"prompt": stats[0].num_prompt_tokens, "generated": stats[0].num_generated_tokens}
            answer = {"pieces": pieces, **counts}
        print(json.dumps(answer), file=answers)


class StockRunner:
    """The process, as a function of one call."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        import subprocess

        command = [sys.executable, "-W", "ignore", __file__, str(model), str(tokenizer)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, call: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(call), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=30)


if __name__ == "__main__":
    serve(*sys.argv[1:])
