"""The result of a benchmark: medians and extremes per contender, against the first one and against the memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from lfm2_export.bench.drafted import Drafted
from lfm2_export.bench.spec import Spec
from lfm2_export.bench.worker import Point, Result
from lfm2_export.evaluate.metrics import QuantizationLoss

SCHEMA_VERSION = 1


class Spread(BaseModel):
    """Several measurements of one thing."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), min=min(values), max=max(values), n=len(values))


class Speed(BaseModel):
    """Decoding at a context, or prefill of a length. "window": more tokens than this contender holds."""

    tokens: int
    status: Literal["measured", "window"]
    tokens_per_second: Spread | None = None
    ratio: float | None = None  # to the first contender's median
    bytes_per_token: int | None = None  # decode: what a step must read, weights and cache
    bandwidth_share: float | None = None  # decode: those bytes per second over the memory's own
    noisy_samples: int = 0  # taken while others used the machine; dropped where a quiet one came after
    noisy: bool = False  # whether some had to be used


class ContenderReport(BaseModel):
    """One contender over all rounds. Bytes and seconds."""

    name: str
    kind: str
    runtime: str
    random_weights: bool | None
    window: int
    size_bytes: int
    load_seconds: Spread  # until the first token's logits are there
    baseline_rss_bytes: Spread  # the process with its library, before the model
    peak_rss_bytes: Spread  # loading, the longest prompt, a few steps; mapped files count
    decode: list[Speed]
    prefill: list[Speed]
    drafted: Drafted | None = None  # a reply with drafts, of the last round
    stages: dict[str, float] | None = None  # of a decode step at its longest context, where a profiler can tell
    loss: QuantizationLoss | None = None  # against fp32 on the report's text


class BenchReport(BaseModel):
    """One benchmark run; ratios are against the first contender."""

    schema_version: Literal[1] = 1
    machine: dict[str, str]
    versions: dict[str, str]
    threads: int
    rounds: int
    steps: int  # single tokens per decode sample, the last of which is at the context
    bandwidth_bytes_per_second: Spread  # memory, read by that many threads, once a round
    contenders: list[ContenderReport]
    text: str | None = None  # that the contenders were held against fp32 on

    @property
    def random_weights(self) -> bool:
        """Tell whether a contender is known to have them: its speed counts, its answers do not."""
        return any(contender.random_weights for contender in self.contenders)


def summarize(specs: Sequence[Spec], results: Sequence[Sequence[Result]], bandwidth: float) -> list[ContenderReport]:
    """One report per contender from `results[contender][round]`; bandwidth in bytes per second."""
    reports = [_contender(spec, rounds, bandwidth) for spec, rounds in zip(specs, results, strict=True)]
    for report in reports:
        for mine, first in zip(report.decode + report.prefill, reports[0].decode + reports[0].prefill, strict=True):
            if mine.tokens_per_second and first.tokens_per_second:
                mine.ratio = mine.tokens_per_second.median / first.tokens_per_second.median
    return reports


def _contender(spec: Spec, rounds: Sequence[Result], bandwidth: float) -> ContenderReport:
    first = rounds[0]
    decode = [_speed([each.decode[i] for each in rounds]) for i in range(len(first.decode))]
    for speed in decode:
        if speed.tokens_per_second and first.weight_bytes is not None and first.cache_bytes is not None:
            speed.bytes_per_token = first.weight_bytes + first.cache_bytes * speed.tokens
            speed.bandwidth_share = speed.bytes_per_token * speed.tokens_per_second.median / bandwidth
    return ContenderReport(
        name=spec.name,
        kind=spec.kind,
        runtime=first.runtime,
        random_weights=spec.random_weights,
        window=first.window,
        size_bytes=first.size,
        load_seconds=Spread.of([each.load_seconds for each in rounds]),
        baseline_rss_bytes=Spread.of([each.baseline_rss for each in rounds]),
        peak_rss_bytes=Spread.of([each.peak_rss for each in rounds]),
        decode=decode,
        prefill=[_speed([each.prefill[i] for each in rounds]) for i in range(len(first.prefill))],
        drafted=rounds[-1].drafted,
        stages=rounds[-1].stages,
    )


def _speed(points: Sequence[Point]) -> Speed:
    """All rounds of one point; rounds with only noisy samples are left out if another round had quiet ones."""
    tokens = points[0].tokens
    if not points[0].seconds_per_token:
        return Speed(tokens=tokens, status="window")
    quiet = [point for point in points if not point.all_noisy]
    seconds = [each for point in quiet or points for each in point.seconds_per_token]
    return Speed(
        tokens=tokens,
        status="measured",
        tokens_per_second=Spread.of([1 / each for each in seconds]),
        noisy_samples=sum(point.noisy for point in points),
        noisy=not quiet,
    )
