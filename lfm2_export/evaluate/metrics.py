"""Distances between two sets of logits, and nothing else. Arrays are `[rows, vocab]` unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

_VALUES = 1 << 17  # at once, of many that become one number
_COMPARED = 2  # rows at once: what is made of them in float64 is small enough to be used again (`used_again`)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|Δ| / max|expected|; max|Δ| itself where the expected tensor is all zero; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    scale = worst([float(np.abs(part).max()) for part in _parts(expected)])
    return worst([float(np.abs(a - b).max()) for a, b in _pairs(actual, expected)]) / (scale or 1.0)


def worst(errors: Sequence[float]) -> float:
    """The largest, a NaN being the worst there is (Python's own max() would depend on the order)."""
    return float(np.max(errors))


def rms_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖Δ‖ / ‖expected‖, the noise-to-signal ratio; ‖Δ‖ itself where the expected array is all zero."""
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in _pairs(actual, expected)) ** 0.5
    signal = sum(float(np.square(part, dtype=np.float64).sum()) for part in _parts(expected)) ** 0.5
    return noise / (signal or 1.0)


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """The same values in pieces, so that what is made of them on the way to one number is small."""
    flat = values.reshape(-1)
    return [flat[start : start + _VALUES] for start in range(0, flat.size, _VALUES)]


def _pairs(actual: np.ndarray, expected: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(_parts(actual), _parts(expected), strict=True)


class Apart(NamedTuple):
    """How far logits lie from the expected ones: of each part of them what the figures of all parts follow from."""

    largest: np.ndarray  # [parts, 2]: max|Δ|, max|expected|
    sums: np.ndarray  # [parts, 4]: Σ|Δ|, ΣΔ², Σexpected², values
    margin: np.ndarray  # [rows], of expected: its largest logit less its second
    same: np.ndarray  # [rows], whether both have the same largest

    @property
    def relative_error(self) -> float:
        """Return what the function of that name does."""
        error, scale = self.largest.max(0)
        return float(error) / (float(scale) or 1.0)

    @property
    def mean_absolute_error(self) -> float:
        """Return the mean of |Δ|."""
        absolute, _, _, values = self.sums.sum(0)
        return float(absolute / values)

    @property
    def rms_error(self) -> float:
        """Return what the function of that name does."""
        _, noise, signal, _ = self.sums.sum(0)
        return float(noise**0.5 / (signal**0.5 or 1.0))

    def clear_top1(self, tolerance: float) -> tuple[int, int]:
        """Return (agreeing, counted) argmax over rows whose margin exceeds the error `tolerance` · max|expected|.

        With a smaller margin either token is a fair answer to that error, so such rows prove nothing.
        """
        counted = self.margin > tolerance * self.largest[:, 1].max()
        return int((self.same & counted).sum()), int(counted.sum())


def apart(actual: np.ndarray, expected: np.ndarray) -> Apart:
    """Return how far two sets of logits are apart."""
    best = torch.from_numpy(expected).topk(2, dim=-1).values.numpy()
    figures = np.array([_figures(*pair) for pair in _pairs(actual, expected)])
    same = actual.argmax(-1) == expected.argmax(-1)
    return Apart(figures[:, :2], figures[:, 2:], best[:, 0] - best[:, 1], same)


def _figures(actual: np.ndarray, expected: np.ndarray) -> tuple[float, ...]:
    difference, size = np.abs(actual - expected), np.abs(expected)
    squares = (np.square(each, dtype=np.float64).sum() for each in (difference, size))
    return difference.max(), size.max(), difference.sum(dtype=np.float64), *squares, difference.size


def all_apart(parts: Sequence[Apart]) -> Apart:
    """Return how far all parts together are apart."""
    return Apart(*(np.concatenate(figures) for figures in zip(*parts, strict=True)))


@dataclass(frozen=True)
class QuantizationLoss:
    """The cost of quantization over teacher-forced tokens, against fp32 eager. KLD and margins in nats per token."""

    tokens: int
    mean_kld: float
    kld_standard_error: float
    p99_kld: float
    top1: float
    perplexity_ratio: float
    median_kld: float
    max_kld: float
    top5: float  # mean share of fp32's five likeliest tokens that are among the other's five
    clear_flips: float | None  # share of flipped top-1 where fp32's best was e times likelier than its second
    flip_margin: float | None  # mean margin of fp32 where the top-1 flipped; None: nowhere


class Rows(NamedTuple):
    """Figures of single predictions, `[rows]` each."""

    kld: np.ndarray  # KL(expected ‖ actual), nats
    same: np.ndarray  # whether both have the same likeliest token
    top5: np.ndarray  # share of the five likeliest in common
    margin: np.ndarray  # of expected: log-probability of its likeliest token less that of its second, nats
    surprise: np.ndarray  # of actual, on the token that followed, nats
    reference_surprise: np.ndarray  # of expected


def compare_rows(actual: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> Rows:
    """Compare two models' logits `[rows, vocab]` before the tokens `targets [rows]`, row by row."""
    # made first: small arrays made between large ones and kept would part the memory that those leave
    rows = Rows(*(np.empty(len(targets), bool if name == "same" else np.float64) for name in Rows._fields))
    for at in range(0, len(targets), _COMPARED):
        some = slice(at, at + _COMPARED)
        for figures, part in zip(rows, _compared(actual[some], expected[some], targets[some]), strict=True):
            figures[some] = part
    return rows


def _compared(actual: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> Rows:
    quantized, reference = (F.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (actual, expected))
    kld = F.kl_div(quantized, reference, reduction="none", log_target=True).sum(-1)
    count = min(5, reference.shape[-1])
    ours, theirs = (torch.from_numpy(x).topk(count, dim=-1) for x in (actual, expected))
    common = (ours.indices.unsqueeze(-1) == theirs.indices.unsqueeze(-2)).any(-1).double().mean(-1)
    margin = theirs.values[:, 0].double() - theirs.values[:, min(1, count - 1)].double()
    same = torch.from_numpy(actual).argmax(-1) == torch.from_numpy(expected).argmax(-1)
    ids = torch.from_numpy(targets).long().unsqueeze(1)
    surprises = (-logits.gather(1, ids).squeeze(1) for logits in (quantized, reference))
    return Rows(*(figure.numpy() for figure in (kld, same, common, margin, *surprises)))


def summary(rows: Rows) -> QuantizationLoss:
    """Return the figures of all rows together; there is at least one."""
    clear, flipped = rows.margin >= 1.0, ~rows.same
    return QuantizationLoss(
        tokens=len(rows.kld),
        mean_kld=float(rows.kld.mean()),
        kld_standard_error=float(rows.kld.std(ddof=1) / len(rows.kld) ** 0.5),
        p99_kld=float(np.quantile(rows.kld, 0.99)),
        top1=float(rows.same.mean()),
        perplexity_ratio=float(np.exp(rows.surprise.mean() - rows.reference_surprise.mean())),
        median_kld=float(np.median(rows.kld)),
        max_kld=float(rows.kld.max()),
        top5=float(rows.top5.mean()),
        clear_flips=float((flipped & clear).sum() / clear.sum()) if clear.any() else None,
        flip_margin=float(rows.margin[flipped].mean()) if flipped.any() else None,
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, one part after the other."""
    return Rows(*(np.concatenate(figures) for figures in zip(*parts, strict=True)))


def quantization_loss(actual: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> QuantizationLoss:
    """The summary of `compare_rows`."""
    return summary(compare_rows(actual, expected, targets))
