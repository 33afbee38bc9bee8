"""Reports read back: the JSON that `parity` and `bench` have written."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lfm2_export.bench.report import BenchReport
from lfm2_export.errors import UsageError, field_error

_MAX_BYTES = 64 << 20


def read_bench(path: Path | None) -> BenchReport | None:
    """Return what `bench --json` printed. Raise UsageError for anything else."""
    if path is None:
        return None
    try:
        return BenchReport.model_validate_json(read_json(path))
    except ValidationError as error:
        raise UsageError(f"{path}: not a report of `lfm2-export bench --json`: {field_error(error)}") from error


def read_json(path: Path) -> bytes:
    """A report's bytes. UsageError for one that is not there or absurdly large."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"{path}: {'too large for a report' if path.is_file() else 'no such file'}")
    return path.read_bytes()
