"""The checkpoint itself in bf16, through transformers: nothing to build."""

from __future__ import annotations

from pathlib import Path

from lfm2_export.bench.spec import Spec, parse
from lfm2_export.progress import Progress


def build(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """The checkpoint as a contender."""
    return [parse(f"eager:{checkpoint}").model_copy(update={"name": "eager bf16"})]
