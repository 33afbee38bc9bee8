"""Our own recipes, exported like a user does. Not proven again: that is `parity`'s business."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.progress import Progress

_XNNPACK: dict[str, list[str]] = {"xnnpack-int4": [], "xnnpack-int4-small": [], "xnnpack-int8": []}
_GROUPS_OF_64 = [f"quantization.{rule}.weight.group=64" for rule in range(4)]
_ONNX = {"onnx-int4": [], "onnx-int4 g64": _GROUPS_OF_64, "onnx-int4-small": [], "onnx-int8": []}
WINDOW = 8192  # tokens: the longest context of the benchmark


def xnnpack(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """One artifact per recipe, explicit form."""
    return _export(_XNNPACK, checkpoint, cache, progress)


def onnx(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """One artifact per recipe."""
    return _export(_ONNX, checkpoint, cache, progress)


def _export(recipes: Mapping[str, Sequence[str]], checkpoint: Path, cache: Path, progress: Progress) -> list[Spec]:
    """`recipes` are names, of which the first word is the recipe's, with what is set otherwise in it."""
    specs = []
    for name, changes in recipes.items():
        folder = cache / name.replace(" ", "-")
        if not folder.exists():
            progress(f"{name}: exporting")
            options = ["--window", str(WINDOW), "--output", str(folder), "--no-verify", "--quiet"]
            options += [part for change in changes for part in ("--set", change)]
            command = [sys.executable, "-m", "lfm2_export", "export", str(checkpoint), "--recipe", name.split()[0]]
            finish([*command, *options])
        specs.append(parse(str(folder)).model_copy(update={"name": name}))
    return specs
