"""The checkpoint itself in bf16, through transformers: nothing to build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfm2_export.bench.spec import Spec, parse


def build(checkpoint: Path, cache: Path, longest: int, stage: Callable[[str], None]) -> list[Spec]:
    """The checkpoint as a contender."""
    return [parse(f"eager:{checkpoint}").model_copy(update={"name": "eager bf16"})]
