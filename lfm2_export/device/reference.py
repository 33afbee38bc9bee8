"""The calls to ask, and what eager PyTorch on this machine makes of them, for each kind of `.pte`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lfm2_export import targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.device.calls import Batch, Call, cut
from lfm2_export.errors import UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import is_cache, state_shapes
from lfm2_export.parity.reference import quantized_model
from lfm2_export.quantize.calibration import read_sequences
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes._in_place_state import InPlaceState
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.static_calls import PREFILL

_CHUNK = 16  # tokens of a prefill call where the method leaves them open


def refusal(target: str, form: str) -> str | None:
    """Return why ExecuTorch's runner on a phone cannot execute a target's artifacts of a form; None where it can."""
    if target not in _KINDS:
        return f"run-on-device runs ExecuTorch artifacts ({', '.join(_KINDS)}), not {target!r} ones"
    if form != "explicit":
        return "a resident form hides its state from the runner; export with --form explicit"
    return None


def batches(
    artifact: Artifact, checkpoint: Checkpoint, recipe: Recipe, tokens: Sequence[int], steps: int
) -> list[Batch]:
    """One batch per method and number of rows. UsageError for an artifact that ExecuTorch's runner cannot execute."""
    manifest = artifact.manifest
    if (reason := refusal(manifest.target, manifest.form)) is not None:
        raise UsageError(reason)
    if manifest.takes_images:
        raise UsageError("run-on-device feeds tokens, and this decoder takes embeddings; export with --set parts=text")
    decoder = quantized_model(artifact, checkpoint)
    with torch.no_grad():
        return _KINDS[manifest.target](artifact, decoder, recipe, tokens, steps)


def _in_place(artifact: Artifact, decoder: Decoder, recipe: Recipe, tokens: Sequence[int], steps: int) -> list[Batch]:
    """One method for any number of tokens, which writes into its inputs."""
    manifest, method = artifact.manifest, artifact.manifest.methods[0]
    eager = EagerSession(decoder, manifest.window)
    groups: dict[int, list[Call]] = {}
    for name, chunk in cut(tokens, min(_CHUNK, method.max_tokens), steps, manifest.window):
        state = InPlaceState(method)
        state.restore(eager.state())
        given = {"tokens": torch.tensor([chunk]), "position": torch.tensor([eager.position]), **state.tensors}
        inputs = [given[spec.name] for spec in method.inputs]
        expected = {"logits": eager.prefill(chunk)[None]}
        groups.setdefault(len(chunk), []).append(Call(name, len(chunk), inputs, expected))
    return [Batch(method, rows, calls) for rows, calls in groups.items()]


def _slices(artifact: Artifact, decoder: Decoder, recipe: Recipe, tokens: Sequence[int], steps: int) -> list[Batch]:
    """Two methods of fixed rows, whose new slices the caller writes back."""
    manifest = artifact.manifest
    methods = {method.name: method for method in manifest.methods}
    sequences = read_sequences(artifact.folder, decoder.config) if recipe.calibration else ()
    quantized = targets.find(manifest.target).reference(decoder, recipe, sequences)
    recorded: list[tuple[str, list[Tensor], dict[str, np.ndarray]]] = []

    def record(method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        given = [tensor.clone() for tensor in inputs]  # the session writes into its state afterwards
        outputs = quantized[method](*inputs) if quantized else eager_call(decoder, manifest, inputs)
        names = [spec.name for spec in methods[method].outputs]
        recorded.append((method, given, {n: out.numpy().copy() for n, out in zip(names, outputs, strict=True)}))
        return outputs

    session = SliceSession(pte_call(record, manifest), manifest, "eager", "")
    calls: dict[str, list[Call]] = {}
    for name, chunk in cut(tokens, methods[PREFILL].max_tokens, steps, manifest.window):
        session.prefill(chunk)  # fits one call of the method
        method, inputs, expected = recorded.pop()
        calls.setdefault(method, []).append(Call(name, len(chunk), inputs, expected))
    return [Batch(methods[name], methods[name].max_tokens, made) for name, made in calls.items()]


def eager_call(decoder: Decoder, manifest: Manifest, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The NPU's calling convention (`static_calls.py`) answered by the traced model itself."""
    tokens, position, length = inputs[:3]
    state = state_shapes(decoder.config, manifest.window)
    given = {
        name: tensor if is_cache(name) else tensor.transpose(1, 2)
        for name, tensor in zip(state, inputs[-len(state) :], strict=True)
    }
    logits, new = decoder(tokens.long(), position.long(), length.long(), given)
    return [logits.unsqueeze(1), *(t if is_cache(name) else t.transpose(1, 2) for name, t in new.items())]


_Kind = Callable[[Artifact, Decoder, Recipe, Sequence[int], int], list[Batch]]
_KINDS: dict[str, _Kind] = {"qnn": _slices, "xnnpack": _in_place}
