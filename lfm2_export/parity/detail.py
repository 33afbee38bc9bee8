"""What only a report shows: divergence token by token, error layer by layer, drift over a long conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.evaluate.metrics import Rows, rms_error
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.model.state import is_cache
from lfm2_export.parity.probes import block_outputs, recorded
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

_SHOWN = 20_000  # predictions that a report gives one by one: 0.8 MB of JSON


@dataclass(frozen=True)
class Detail:
    """The extent to which details are measured."""

    drift_steps: int = 2000  # decode steps; fewer where the window ends
    drift_samples: int = 40  # of them, where the states are compared


class TokenDivergence(BaseModel):
    """KL(fp32 ‖ artifact) of single teacher-forced predictions, nats, and how many tokens came before each."""

    kld: list[float]
    position: list[int]
    of: int | None = None  # predictions that these were drawn from at random; None: these are all


class LayerError(BaseModel):
    """RMS errors of one layer, relative to the reference's own RMS."""

    layer: int
    kind: str  # conv or full_attention
    lowering: float | None = None  # the artifact's state from its reference's; None: this form hides its state
    quantization: float | None = None  # residual stream, quantized eager from fp32; None: eager is not the reference


class DriftSample(BaseModel):
    """RMS errors after `step` decode steps, relative; None where there is no such state, or it is hidden."""

    step: int
    logits: float
    conv: float | None
    cache: float | None  # of the columns written since the last sample


class Drift(BaseModel):
    """The artifact from its reference over one long conversation, both fed the same tokens."""

    asked: int  # steps
    steps: int  # taken
    reason: str | None = None  # why fewer were taken
    samples: list[DriftSample]


class Details(BaseModel):
    """The details of one runtime."""

    tokens: TokenDivergence | None = None
    layers: list[LayerError] = []
    drift: Drift | None = None


def from_reference(
    session: Session,
    reference: Session,
    config: LFM2Config,
    tokens: Sequence[int],
    conversation: Sequence[int],
    wanted: Detail,
) -> Details:
    """An artifact beside its reference: each layer's state after `tokens`, and the drift along a `conversation`."""
    if session.has_state:
        layers = state_errors(session, reference, config, tokens)
    else:
        layers = [LayerError(layer=layer, kind=kind) for layer, kind in enumerate(config.layer_types)]
    drifted = drift(session, reference, conversation, wanted.drift_steps, wanted.drift_samples)
    return Details(layers=layers, drift=drifted)


def add_cost_by_layer(found: Details, quantized: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> None:
    """Add how far quantization has moved the residual stream after each layer, in place."""
    for layer, ours, theirs in zip(found.layers, quantized, exact, strict=True):
        layer.quantization = rounded(rms_error(ours, theirs))


def token_divergence(rows: Rows, sequences: TokenSequences) -> TokenDivergence:
    """Return the divergence of every prediction of the evaluation text by itself; of a long text a sample of them."""
    position, count = np.concatenate([np.arange(1, len(tokens)) for tokens in sequences]), len(rows.kld)
    shown = np.arange(count)
    if count > _SHOWN:
        shown = np.sort(np.random.default_rng(0).choice(count, _SHOWN, replace=False))
    return TokenDivergence(
        kld=[rounded(max(float(kld), 0.0)) for kld in rows.kld[shown]],
        position=position[shown].tolist(),
        of=count if count > _SHOWN else None,
    )


def state_errors(session: Session, reference: Session, config: LFM2Config, tokens: Sequence[int]) -> list[LayerError]:
    """Return each layer's error of the state after a prefill of the same tokens: where does it first differ?"""
    session.reset()
    reference.reset()
    session.prefill(tokens)
    reference.prefill(tokens)
    ours, theirs = session.state().tensors, reference.state().tensors
    errors = []
    for layer, kind in enumerate(config.layer_types):
        names = [name for name in theirs if name.endswith(f".{layer}")]
        worst = max(rms_error(ours[name], theirs[name]) for name in names)
        errors.append(LayerError(layer=layer, kind=kind, lowering=rounded(worst)))
    return errors


def residual_stream(eager: EagerSession, tokens: Sequence[int]) -> list[np.ndarray]:
    """Return the residual stream after each layer of an eager model, `[T, hidden]`."""
    eager.reset()
    with recorded(eager.decoder) as probes:
        eager.score(tokens)
    return [stream[0] for stream in block_outputs(eager.decoder, probes)]


def drift(session: Session, reference: Session, tokens: Sequence[int], asked: int, samples: int) -> Drift:
    """Decode `tokens`, comparing at evenly spaced steps. The reference prefills from one sample to the next."""
    steps = min(asked, session.window, len(tokens))
    session.reset()
    reference.reset()
    found, before = [], 0
    for step in sorted({max(1, round(steps * number / samples)) for number in range(1, samples + 1)}):
        for token in tokens[before:step]:
            ours = session.decode(token)
        theirs = reference.prefill(tokens[before:step])
        found.append(_sample(session, reference, ours, theirs, before, step))
        before = step
    reason = None if steps == asked else f"the window holds {session.window} tokens"
    return Drift(asked=asked, steps=steps, reason=reason, samples=found)


def _sample(
    session: Session, reference: Session, ours: np.ndarray, theirs: np.ndarray, before: int, step: int
) -> DriftSample:
    logits = rounded(rms_error(ours, theirs))
    if not session.has_state:
        return DriftSample(step=step, logits=logits, conv=None, cache=None)
    actual, expected = session.state().tensors, reference.state().tensors
    errors: dict[bool, list[float]] = {True: [], False: []}
    for name, tensor in expected.items():
        conv = not is_cache(name)
        new = (actual[name], tensor) if conv else (actual[name][:, :, before:step], tensor[:, :, before:step])
        errors[conv].append(rms_error(*new))
    conv_error, cache_error = (rounded(max(errors[conv])) if errors[conv] else None for conv in (True, False))
    return DriftSample(step=step, logits=logits, conv=conv_error, cache=cache_error)


def rounded(value: float) -> float:
    """Four significant digits: more are noise, and make a report long."""
    return float(f"{value:.4g}")
