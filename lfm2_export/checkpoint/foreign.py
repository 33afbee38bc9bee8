"""The command that makes a checkpoint usable whose weights are never read here, for messages: transformers reads it."""

from __future__ import annotations

import json
import shlex


def with_transformers(source: str, output: str, load: str = "", then: str = "", save: str = "") -> str:
    """Return a shell command that reads `source` with transformers and writes the folder `output` in safetensors.

    `load` and `save` are further arguments of `from_pretrained` and `save_pretrained`, `then` what is done between.
    """
    # double quotes inside, so that the shell's single ones stay readable
    read = f"M.from_pretrained({json.dumps(source)}{load}){then}.save_pretrained({json.dumps(output)}{save})"
    return f"python -c {shlex.quote(f'from transformers import AutoModelForCausalLM as M; {read}')}"
