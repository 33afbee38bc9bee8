"""Our own XNNPACK recipes, exported like a user does. Not proven again: that is `parity`'s business."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse

RECIPES = ("xnnpack-int4", "xnnpack-int4-small", "xnnpack-int8")
WINDOW = 8192  # tokens: the longest context of the benchmark


def build(checkpoint: Path, cache: Path, longest: int, stage: Callable[[str], None]) -> list[Spec]:
    """One artifact per recipe, explicit form."""
    specs = []
    for recipe in RECIPES:
        folder = cache / recipe
        if not folder.exists():
            stage(f"{recipe}: exporting")
            options = ["--recipe", recipe, "--window", str(WINDOW), "--output", str(folder), "--no-verify", "--quiet"]
            finish([sys.executable, "-m", "lfm2_export", "export", str(checkpoint), *options])
        specs.append(parse(str(folder)))
    return specs
