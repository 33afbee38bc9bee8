"""Our own recipes, exported like a user does. Not proven again: that is `parity`'s business."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse

_XNNPACK = ("xnnpack-int4", "xnnpack-int4-small", "xnnpack-int8")
_ONNX = ("onnx-int4", "onnx-int4-small", "onnx-int8")
WINDOW = 8192  # tokens: the longest context of the benchmark


def xnnpack(checkpoint: Path, cache: Path, longest: int, stage: Callable[[str], None]) -> list[Spec]:
    """One artifact per recipe, explicit form."""
    return _export(_XNNPACK, checkpoint, cache, stage)


def onnx(checkpoint: Path, cache: Path, longest: int, stage: Callable[[str], None]) -> list[Spec]:
    """One artifact per recipe."""
    return _export(_ONNX, checkpoint, cache, stage)


def _export(recipes: Sequence[str], checkpoint: Path, cache: Path, stage: Callable[[str], None]) -> list[Spec]:
    specs = []
    for recipe in recipes:
        folder = cache / recipe
        if not folder.exists():
            stage(f"{recipe}: exporting")
            options = ["--recipe", recipe, "--window", str(WINDOW), "--output", str(folder), "--no-verify", "--quiet"]
            finish([sys.executable, "-m", "lfm2_export", "export", str(checkpoint), *options])
        specs.append(parse(str(folder)))
    return specs
