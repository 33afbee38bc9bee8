"""Distances between two sets of logits, and nothing else. Arrays are `[rows, vocab]` unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|Δ| / max|expected|; max|Δ| itself where the expected tensor is all zero; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    scale = float(np.abs(expected).max())
    return float(np.abs(actual - expected).max()) / (scale or 1.0)


def worst(errors: Sequence[float]) -> float:
    """The largest, a NaN being the worst there is (Python's own max() would depend on the order)."""
    return float(np.max(errors))


def rms_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖Δ‖ / ‖expected‖, the noise-to-signal ratio; ‖Δ‖ itself where the expected array is all zero."""
    noise = float(np.square(actual - expected, dtype=np.float64).sum()) ** 0.5
    signal = float(np.square(expected, dtype=np.float64).sum()) ** 0.5
    return noise / (signal or 1.0)


def clear_top1(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> tuple[int, int]:
    """(agreeing, counted) argmax over the rows whose margin exceeds the allowed error, `tolerance` · max|expected|.

    With a smaller margin either token is a fair answer to that error, so such rows prove nothing.
    """
    ordered = np.sort(expected, axis=-1)
    counted = ordered[:, -1] - ordered[:, -2] > tolerance * np.abs(expected).max()
    agree = actual.argmax(-1) == expected.argmax(-1)
    return int((agree & counted).sum()), int(counted.sum())


@dataclass(frozen=True)
class QuantizationLoss:
    """What quantization cost over teacher-forced tokens, against fp32 eager. KLD in nats per token."""

    tokens: int
    mean_kld: float
    kld_standard_error: float
    p99_kld: float
    top1: float
    perplexity_ratio: float


def quantization_loss(actual: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> QuantizationLoss:
    """KL(expected ‖ actual) per row, argmax agreement and exp(Δ cross-entropy) on `targets [rows]`."""
    quantized, reference = (F.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (actual, expected))
    kld = F.kl_div(quantized, reference, reduction="none", log_target=True).sum(-1)
    ids = torch.from_numpy(targets).long()
    ratio = torch.exp(F.nll_loss(quantized, ids) - F.nll_loss(reference, ids))
    return QuantizationLoss(
        tokens=len(kld),
        mean_kld=float(kld.mean()),
        kld_standard_error=float(kld.std() / len(kld) ** 0.5),
        p99_kld=float(kld.quantile(0.99)),
        top1=float((quantized.argmax(-1) == reference.argmax(-1)).double().mean()),
        perplexity_ratio=float(ratio),
    )
