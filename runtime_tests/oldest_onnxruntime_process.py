"""Greedy tokens of artifact folders, through whichever onnxruntime is first on the path.

Arguments: folders. Prints JSON: {"version", "replies": {folder: tokens}}, or the error that a folder met.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.runtimes import onnxruntime

PROMPTS = ([1, 6, 40, 73, 22, 31, 9], [1, 5, 300, 17])  # arbitrary tokens of nano's vocabulary
NEW_TOKENS = 16


def reply(session: onnxruntime.OnnxRuntimeSession, prompt: list[int]) -> list[int]:
    session.reset()
    tokens = [int(np.argmax(session.prefill(prompt)))]
    while len(tokens) < NEW_TOKENS:
        tokens.append(int(np.argmax(session.decode(tokens[-1]))))
    return tokens


def replies(folder: Path) -> list[list[int]]:
    """The greedy continuation of each prompt, on one thread."""
    artifact = open_artifact(folder)
    session = onnxruntime.RUNTIME.open_session(artifact.folder, artifact.manifest, threads=1)
    return [reply(session, prompt) for prompt in PROMPTS]


if __name__ == "__main__":
    found = {folder: replies(Path(folder)) for folder in sys.argv[1:]}
    print(json.dumps({"version": onnxruntime.RUNTIME.version(), "replies": found}))
