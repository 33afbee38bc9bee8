"""The result of a parity run: figures per runtime, gates against the recipe's limits, one verdict."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from lfm2_export.artifact.manifest import Delegation, Extent, GateResult
from lfm2_export.evaluate.metrics import QuantizationLoss
from lfm2_export.parity.cache import CacheFigures
from lfm2_export.parity.detail import Details
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.images import ImageFigures
from lfm2_export.parity.laws import LawResult
from lfm2_export.parity.lowering import (
    NOISE_RMS,
    LoweringFigures,
    TwinFigures,
    allowed_error,
    allowed_step,
    noise_rules,
)
from lfm2_export.parity.pictures import PictureCases
from lfm2_export.parity.sampling import Limit, least_share, most_mean
from lfm2_export.parity.trace_result import Trace
from lfm2_export.recipes import Gates
from lfm2_export.runtimes.session import Check

WEIGHTS_LIMIT = 1e-4  # with float activations quantized kernels are as exact as fp32 ones


class RuntimeReport(BaseModel):
    """All that was measured through one runtime. `status` is "skipped" only with a `reason`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    runtime: str
    stands_in: bool = False  # for the runtime that an app uses: its pass proves nothing of that
    status: str = "skipped"  # pass, fail, skipped
    reason: str | None = None
    version: str | None = None
    load_seconds: float | None = None
    seconds: float | None = None
    reference: str | None = None  # what lowering was compared with: "eager", or another runtime of the same integers
    lowering: LoweringFigures | None = None
    weights_error: float | None = None  # of the stored weights alone: by comparing bytes, or run with float activations
    weights_reason: str | None = None  # why that could not be measured
    twin: TwinFigures | None = None  # an emulated processor beside this machine's own
    checks: tuple[Check, ...] = ()  # made on the device when the session was opened
    notes: tuple[str, ...] = ()  # how the session computes, where that is not as usual
    images: ImageFigures | None = None  # of an artifact that takes images
    pictures: PictureCases | None = None  # of such an artifact, where a report is asked for
    greedy: float | None = None  # share of equal greedy continuations
    laws: list[LawResult] = []
    quality_of: str | None = None  # what quality and task accuracy were measured on: the runtime, or its reference
    quality: QuantizationLoss | None = None
    task_accuracy: dict[str, float] | None = None  # nano only, by kind and "all"
    gates: list[GateResult] = []
    details: Details | None = None  # measured only where a report is asked for


class ParityReport(BaseModel):
    """One parity run of one artifact, over every runtime that is meant for it."""

    generator: Literal["lfm2-export"] = "lfm2-export"  # first: what --force knows a report by
    artifact: str
    recipe: str
    source: str
    weights_sha256: str
    random_weights: bool
    effort: Extent | Literal["custom"] = "full"  # how much was measured; "custom" where Python chose
    text: str  # what the quality figures were measured on
    reference_task_accuracy: dict[str, float] | None = None  # fp32 eager, nano only
    cache: CacheFigures | None = None  # what the window costs
    delegation: list[Delegation] = []
    size_bytes: int
    versions: dict[str, str]
    settings: dict[str, Any] = {}  # the recipe in full
    files: dict[str, int] = {}  # bytes
    quantization: dict[str, str] = {}  # module class → how
    reproduce: list[str] = []  # shell commands
    runtimes: list[RuntimeReport]
    trace: Trace | None = None  # where it first leaves eager; only when asked for

    @property
    def verdict(self) -> str:
        """Return the outcome in a few words."""
        outcome = "NOT proven" if self.unproven is None else f"checked, NOT proven on this machine: {self.unproven}"
        return ("proven" if self.passed else outcome) + ("" if self.effort == "full" else f" ({self.effort} effort)")

    @property
    def unproven(self) -> str | None:
        """Return why nothing is proven though nothing failed, where a stand-in passed; None otherwise."""
        if any(runtime.status == "fail" for runtime in self.runtimes) or self.passed:
            return None
        if not any(runtime.stands_in and runtime.status == "pass" for runtime in self.runtimes):
            return None
        absent = [f"{each.runtime}: {each.reason}" for each in self.runtimes if not each.stands_in and each.reason]
        return "; ".join(absent) or "only a stand-in for its runtime was asked"

    @property
    def gates(self) -> list[GateResult]:
        return [gate for runtime in self.runtimes for gate in runtime.gates]

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own documented spelling
    @property
    def passed(self) -> bool:
        """Tell whether something was proven and nothing failed; what was skipped, or a stand-in, proves nothing."""
        proven = any(runtime.status == "pass" and not runtime.stands_in for runtime in self.runtimes)
        return proven and not any(runtime.status == "fail" for runtime in self.runtimes)


def judge(
    report: RuntimeReport,
    gates: Gates,
    reference: dict[str, float] | None,
    random_weights: bool,
    effort: Effort | None = None,
) -> None:
    """Fill in the runtime's gates and status from its figures; a quick `effort` widens the limits of quality by chance.

    See `sampling.py`.
    """
    sampled = effort if effort is not None and effort.name == "quick" else None
    judged = Judged(report.runtime)
    for check in report.checks:
        judged.at_most(check.name, check.error, check.limit, check.reason)
    if report.lowering is not None:
        noise = report.lowering.floor
        judged.at_most("lowering: max error", report.lowering.max_error, allowed_error(gates.lowering, noise))
        if noise is not None and noise_rules(gates.lowering, noise):
            judged.at_most("lowering: RMS error", report.lowering.rms_error, NOISE_RMS * noise.rms_error)
        unclear = "no row's margin exceeds the allowed error" if report.lowering.top1 is None else None
        hidden = None if report.lowering.median_step is not None else "this form keeps its state to itself"
        step_limit = allowed_step(gates.lowering, report.lowering.floor_step)
        judged.at_most("lowering: median step", report.lowering.median_step, step_limit, hidden)
        judged.at_least("lowering: clear top-1", report.lowering.top1, gates.lowering.top1, unclear)
    if report.weights_error is not None or report.weights_reason is not None:
        judged.at_most("lowering: weights alone", report.weights_error, WEIGHTS_LIMIT, report.weights_reason)
    if report.twin is not None:
        judged.at_most(f"{report.twin.runtime}: max error", report.twin.max_error, gates.lowering.max_error)
        judged.at_most(f"{report.twin.runtime}: median step", report.twin.median_step, gates.lowering.twin_step)
    meaningless = "random weights: their margins and quality say nothing" if random_weights else None
    unclear = "every choice was closer than the allowed error" if report.greedy is None else None
    judged.at_least("lowering: greedy text", report.greedy, gates.lowering.greedy, meaningless or unclear)
    if report.images is not None:
        judged.at_most("images: embeddings", report.images.embeddings_error, report.images.embeddings_limit)
        judged.at_most("images: logits", report.images.logits_error, report.images.logits_limit)
    for law in report.laws:
        judged.at_most(f"law: {law.name}", law.error, law.limit, law.reason)
    if report.quality is not None:
        kld, top1 = Limit(gates.quality.mean_kld), Limit(gates.quality.top1)
        if sampled:
            kld, top1 = most_mean(kld.value, report.quality), least_share(top1.value, report.quality.tokens)
        judged.at_most("quality: mean KLD", report.quality.mean_kld, kld, meaningless)
        judged.at_least("quality: top-1", report.quality.top1, top1, meaningless)
    if report.images is not None:
        judged.at_most("quality: image part's KLD", report.images.kld, gates.quality.vision_kld, meaningless)
    if report.task_accuracy is not None and reference is not None:
        floor = Limit(reference["all"] - gates.quality.task_drop)
        if sampled:
            floor = least_share(floor.value, sampled.questions)
        judged.at_least("quality: task accuracy", report.task_accuracy["all"], floor)
    report.gates = judged.results
    report.status = judged.status


class Judged:
    """Collects the gates of one runtime. A figure of None is a skipped gate and needs its reason."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.results: list[GateResult] = []

    def at_most(self, name: str, value: float | None, limit: float | Limit, reason: str | None = None) -> None:
        held = limit if isinstance(limit, Limit) else Limit(limit)
        self._add(name, value, held, value is not None and value <= held.value, reason)

    def at_least(self, name: str, value: float | None, limit: float | Limit, reason: str | None = None) -> None:
        held = limit if isinstance(limit, Limit) else Limit(limit)
        self._add(name, value, held, value is not None and value >= held.value, reason)

    @property
    def status(self) -> str:
        statuses = {gate.status for gate in self.results}
        return "fail" if "fail" in statuses else "pass" if "pass" in statuses else "skipped"

    def _add(self, name: str, value: float | None, limit: Limit, passed: bool, reason: str | None) -> None:
        if reason is None and value is None:
            raise ValueError(f"gate {name!r} has neither a value nor a reason")
        status: Literal["pass", "fail", "skipped"]
        status = "skipped" if reason is not None else "pass" if passed else "fail"
        shown = None if value is None or value != value else float(f"{value:.3g}")
        reason = reason or ("the figure is not a number" if value is not None and value != value else limit.reason)
        self.results.append(
            GateResult(name=name, runtime=self.runtime, status=status, value=shown, limit=limit.value, reason=reason)
        )
