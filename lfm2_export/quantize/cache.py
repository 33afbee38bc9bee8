"""Where a long quantization keeps its finished layers, so that it goes on after an interruption.

One folder for each combination of checkpoint, rules, method, calibration tokens and versions; it goes when the artifact
is written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.files import cache_root
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.quantize.calibration import digest
from lfm2_export.quantize.method import Method
from lfm2_export.quantize.scheme import Rules

_ALGORITHM = 2  # raise it when the same input gives other integers


def folder_for(checkpoint: Checkpoint, rules: Rules, method: Method, sequences: TokenSequences) -> Path:
    """The folder of this run; it need not exist."""
    given = [
        checkpoint.digest(),
        [rule.model_dump(mode="json") for rule in rules],
        method,
        digest(sequences),
        torch.__version__,
        _ALGORITHM,
    ]
    return cache_root() / "weights" / hashlib.sha256(json.dumps(given).encode()).hexdigest()[:32]
