"""Where does an artifact first leave eager PyTorch? Layer and operation, by name.

The network is lowered again from the checkpoint, with what goes into and comes out of every module as outputs, and run
in its runtime. Eager then runs twice: freely, which shows how errors accumulate, and led along the artifact's own
values, so that each operation is judged on the inputs the artifact gave it. The first gives the size of the damage,
the second the culprit. (Eager is the decoder or, where the target chooses scales, the graph that has them.) A rounding
that falls the other way shows in one token, a wrong weight in all: the median token is held to a limit hundreds of
times tighter than the worst one.

A target that cannot lower such a network is traced by the state of the artifact at hand, which every explicit form
shows: a layer is found, not an operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfm2_export import runtimes, targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import UsageError
from lfm2_export.evaluate.metrics import relative_error
from lfm2_export.files import scratch_folder
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity.leading import Guided, GuidedDecoder, GuidedMethods, aligned
from lfm2_export.parity.probes import ProbeValues, describe
from lfm2_export.parity.reference import quantized_model, reference
from lfm2_export.parity.subject import traced_text
from lfm2_export.parity.trace_result import Trace, TracePoint
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.calibration import read_sequences
from lfm2_export.quantize.scheme import needs_calibration
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.session import Session

_OWN = 0.01  # most that one operation may be off by: one rounding to int8 the other way is 0.001 on nano
_TYPICAL = 2e-5  # of the median token: sums in another order make 6e-7 on nano
_TYPICAL_HALF = 5e-3  # where values are rounded to 16 bits: about one step of bfloat16
_TYPICAL_STATIC = 0.02  # NPU: attention, and products with int4 weights, make up to 0.014 on nano, on the emulator
_CALLS = (9, 7)  # tokens of each call: the second reads the state that the first one left

Errors = dict[str, float]  # point → max|Δ| / max|expected|, the worst of all calls


def find_divergence(
    artifact: Artifact,
    checkpoint: Checkpoint,
    tolerance: float | None = None,
    progress: Progress = silent,
    through: str | None = None,
) -> Trace:
    """Trace the artifact's recipe on its target; `tolerance` defaults to the recipe's `max_error`, at most 0.01.

    With static activations, on an NPU, it is `max_error` itself: a value beyond its calibrated range is cut off there.

    `through` names the runtime that is looked into, by default the target's own.

    Raises UsageError where nothing can be compared: no probed lowering, and a state that is hidden.
    """
    recipe = Recipe.model_validate(artifact.manifest.recipe)
    limit = tolerance or _worst_limit(recipe)
    tokens = traced_text(artifact, checkpoint, sum(_CALLS))
    decoder = quantized_model(artifact, checkpoint)
    target = targets.find(artifact.manifest.target)
    sequences = read_sequences(artifact.folder, decoder.config) if recipe.calibration is not None else ()
    with scratch_folder() as folder:
        progress("lowering it again, with every module's input and output shown")
        lowered = target.lower_with_probes(decoder, recipe, folder, progress, sequences)
        if lowered is None:
            return _by_state(artifact, decoder, tokens, tolerance or recipe.gates.lowering.max_error, progress)
        manifest = artifact.manifest.model_copy(update={"form": "explicit", **lowered._asdict()})
        runtime = runtimes.find(through) if through else runtimes.first(manifest)
        session = runtime.open_session(folder, manifest)
        progress(f"{session.runtime}: point by point against eager")
        methods = target.reference(decoder, recipe, sequences, probed=True)
        eager: Guided
        if methods is None:
            eager = GuidedDecoder(unpack(target.as_stored(decoder, recipe)), recipe.window)
        else:
            eager = GuidedMethods(methods, manifest)
        return _by_points(session, eager, decoder.config.num_hidden_layers, tokens, limit, recipe)


def _by_points(
    session: Session, eager: Guided, layers: int, tokens: Sequence[int], limit: float, recipe: Recipe
) -> Trace:
    typical: Errors = {}
    free: Errors = {}
    own: Errors = {}
    order: list[str] = []
    for call in _calls(tokens):
        session.prefill(call)
        ours = session.probes()
        theirs = eager.free(call)
        order = [point for point in theirs if point in ours and not _is_repeated(point, theirs, ours)]
        for point in order:
            free[point] = _worse(free.get(point), relative_error(aligned(ours[point], theirs[point]), theirs[point]))
        for point, expected in eager.led(call, ours).items():
            given = aligned(ours[point], expected)
            own[point] = _worse(own.get(point), relative_error(given, expected))
            typical[point] = _worse(typical.get(point), _median_token(given, expected))
    points = [_point(point, layers, own[point], typical[point], free[point]) for point in order]
    beyond = [
        point
        for point in order
        if not (own[point] <= limit and typical[point] <= min(limit, _typical_limit(point, recipe)))
    ]
    method = (
        "Lowered again from the checkpoint with every module's input and output shown. Own error: of one operation, "
        "given the artifact's own inputs. Accumulated: against eager's undisturbed run."
    )
    return _trace(session.runtime, method, limit, points, order.index(beyond[0]) if beyond else None)


def _worst_limit(recipe: Recipe) -> float:
    limit = recipe.gates.lowering.max_error
    return limit if needs_calibration(recipe.quantization) else min(limit, _OWN)


def _typical_limit(point: str, recipe: Recipe) -> float:
    if needs_calibration(recipe.quantization):
        return _TYPICAL_STATIC
    half = any(rule.activation == "float16" for rule in recipe.quantization) or "float16" in recipe.options.values()
    attended = point.endswith("self_attn.out_proj:in") and recipe.cache != "float32"
    return _TYPICAL_HALF if half or attended else _TYPICAL


def _by_state(artifact: Artifact, decoder: Decoder, tokens: Sequence[int], limit: float, progress: Progress) -> Trace:
    runtime, session = _any_session(artifact)
    truth = runtime.reference_session(artifact.folder, artifact.manifest) or reference(artifact, decoder)
    progress(f"{session.runtime}: state by state against {truth.runtime}")
    errors: Errors = {}
    for call in _calls(tokens):
        session.prefill(call)
        truth.prefill(call)
        ours, theirs = session.state().tensors, truth.state().tensors
        for name, expected in theirs.items():
            errors[name] = _worse(errors.get(name), relative_error(ours[name], expected))
    points = [
        TracePoint(point=name, layer=int(name.rpartition(".")[2]), operation=name, own=None, accumulated=error)
        for name, error in errors.items()
    ]
    method = (
        f"The {artifact.manifest.target} target cannot show its network's inside, so the states of the artifact at "
        "hand were compared: the fault lies in this layer up to its state, or in the one before behind its state."
    )
    beyond = [number for number, error in enumerate(errors.values()) if not error <= limit]  # NaN is beyond
    return _trace(session.runtime, method, limit, points, beyond[0] if beyond else None)


def _any_session(artifact: Artifact) -> tuple[runtimes.Runtime, Session]:
    for name in runtimes.able(artifact.manifest):
        runtime = runtimes.find(name)
        session = runtime.open_session(artifact.folder, artifact.manifest)
        if session.has_state:
            return runtime, session
    raise UsageError(f"--trace: {artifact.manifest.target} shows neither its network's inside nor this form's state")


def _trace(runtime: str, method: str, limit: float, points: list[TracePoint], first: int | None) -> Trace:
    if first is not None:
        found = points[first]
        where = "outside the layers" if found.layer is None else f"layer {found.layer}"
        worst = found.accumulated if found.own is None else found.own
        verdict = f"{where}, {found.operation}: error {worst:.2g}"
        verdict += f", {found.typical:.2g} for the median token" if found.typical is not None else ""
    else:
        worst = max((point.accumulated for point in points), default=0.0)
        verdict = f"none: each of {len(points)} points is within {limit:.2g}; together they add up to {worst:.2g}"
    return Trace(runtime=runtime, method=method, tolerance=limit, points=points, first=first, verdict=verdict)


def _point(point: str, layers: int, own: float, typical: float, accumulated: float) -> TracePoint:
    layer, operation = describe(point, layers)
    return TracePoint(
        point=point,
        layer=layer,
        operation=operation,
        own=float(f"{own:.4g}"),
        typical=float(f"{typical:.4g}"),
        accumulated=float(f"{accumulated:.4g}"),
    )


def _is_repeated(point: str, theirs: ProbeValues, ours: ProbeValues) -> bool:
    """Whether an input is only what another module gave out: the same values, with nothing computed in between."""
    return point.endswith(":in") and any(
        name in ours
        and name.endswith(":out")
        and values.size == theirs[point].size
        and np.array_equal(values.ravel(), theirs[point].ravel())
        for name, values in theirs.items()
    )


def _median_token(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The median over rows of max|Δ| / max|theirs|, the scale being that of all rows."""
    rows = np.abs(ours - theirs).reshape(-1, theirs.shape[-1]).max(axis=-1)
    return float(np.median(rows)) / (float(np.abs(theirs).max()) or 1.0)


def _calls(tokens: Sequence[int]) -> list[Sequence[int]]:
    return [tokens[: _CALLS[0]], tokens[_CALLS[0] :]]


def _worse(known: float | None, error: float) -> float:
    return error if known is None else float(np.max([known, error]))
