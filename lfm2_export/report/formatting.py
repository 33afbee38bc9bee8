"""Figures and names as a report spells them."""

from __future__ import annotations

import html
import re
from typing import Any

_LABELS = {
    "tokens": "tokens",
    "mean_kld": "KLD mean (nats)",
    "kld_standard_error": "its standard error",
    "median_kld": "KLD median",
    "p99_kld": "KLD 99th percentile",
    "max_kld": "KLD largest",
    "top1": "same most likely token",
    "top5": "five most likely in common",
    "perplexity_ratio": "perplexity ratio",
    "clear_flips": "clear choices that flipped",
    "flip_margin": "margin where it flipped (nats)",
}


def figures(loss: Any) -> list[tuple[str, str]]:
    """Return (label, value) of everything that is known of a quantization loss."""
    known = vars(loss)
    return [(label, number(known[name])) for name, label in _LABELS.items() if known.get(name) is not None]


def number(value: Any) -> str:
    """Three significant digits; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def as_cell(value: object) -> str:
    """Text for a Markdown table: no markup, no line break, no end of the cell."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!@])", r"\\\1", text)


def as_code(value: object) -> str:
    """Text for a fenced block, which it cannot end."""
    return str(value).replace("```", "'''")
