"""Sizes as people write them, and the limit a bundle must keep."""

from __future__ import annotations

import re

from lfm2_export.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*([kmg]i?)?b?", re.I | re.A)


def parse_size(text: str) -> int:
    """Bytes: `200MB`, `1.5 GB` (decimal, as stores count), `512MiB`. UsageError for anything else, and for nothing."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if size < 1:
        raise UsageError(f"{text!r:.40} is no size; write it like 200MB or 1.5GB")
    return size


def check_budget(size: int, limit: int | None, largest: str) -> None:
    """Raise UsageError when `size` bytes exceed the limit; `largest` is what takes most of them."""
    if limit is not None and size > limit:
        raise UsageError(
            f"{size / 1e6:.1f} MB, {(size - limit) / 1e6:.1f} MB more than --max-size {limit / 1e6:g} MB; "
            f"the largest part is {largest}; nothing was written"
        )
