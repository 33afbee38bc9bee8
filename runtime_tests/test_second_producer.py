"""A second producer: torch's own exporter makes ONNX of the traced nano model; both files must say the same.

Its graph shares nothing with ours but the model: other operators, other names, state as new slices instead of whole
caches. An error in how we write the graph, or in how the reference is traced, shows as a difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from artifacts import WINDOW, open_session
from torch import Tensor, nn

from lfm2_export.model.load import load_decoder
from lfm2_export.model.state import empty_state, is_cache, state_shapes, write_slices

LIMIT = 1e-4  # largest absolute difference, of logits and states
CHUNKS = (17, 1, 1, 5, 2, 1)


class Traced(nn.Module):
    """The decoder with its state as a list, since an ONNX file has no dictionaries."""

    def __init__(self, decoder: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.decoder, self.names = decoder, names

    def forward(self, tokens: Tensor, position: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        logits, new = self.decoder(tokens, position, None, dict(zip(self.names, state, strict=True)))
        return (logits, *(new[name] for name in self.names))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, nano: Any) -> Any:
    names = list(state_shapes(nano.config, WINDOW))
    state = empty_state(nano.config, WINDOW)
    path = tmp_path_factory.mktemp("second") / "model.onnx"
    tokens = torch.tensor([[5, 6, 7, 8]])
    count = torch.export.Dim("count", min=1, max=WINDOW)
    with torch.no_grad():
        program = torch.onnx.export(
            Traced(load_decoder(nano), names).eval(),
            (tokens, torch.tensor([0]), list(state.values())),
            input_names=["tokens", "position", *names],
            output_names=["logits", *(f"new_{name}" for name in names)],
            dynamic_shapes=({1: count}, None, [None for _ in names]),
            dynamo=True,
            opset_version=23,
            verbose=False,
        )
    program.save(path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_two_producers_give_the_same_logits_and_states(make_artifact: Any, nano: Any, second: Any) -> None:
    ours, state = open_session(make_artifact("onnx-fp32", "explicit")), empty_state(nano.config, WINDOW)
    ids = [1 + 7 * i % 900 for i in range(sum(CHUNKS))]
    position = 0
    for size in CHUNKS:
        chunk = ids[position : position + size]
        feeds = {"tokens": np.array([chunk]), "position": np.array([position])}
        logits, *new = second.run(None, feeds | {name: tensor.numpy() for name, tensor in state.items()})
        slices = {name: torch.from_numpy(part) for name, part in zip(state, new, strict=True)}
        write_slices(state, slices, torch.tensor([position]), torch.tensor([size]))
        position += size
        np.testing.assert_allclose(ours.prefill(chunk), logits[0], rtol=0, atol=LIMIT)
        for name, found in ours.state().tensors.items():
            theirs = state[name][:, :, :position] if is_cache(name) else state[name]
            np.testing.assert_allclose(found, theirs.numpy(), rtol=0, atol=LIMIT)


@pytest.mark.slow
def test_the_comparison_sees_a_difference(make_artifact: Any, nano: Any, second: Any) -> None:
    ours, state = open_session(make_artifact("onnx-int8", "explicit")), empty_state(nano.config, WINDOW)
    feeds = {"tokens": np.array([[5, 6, 7]]), "position": np.array([0])}
    logits = second.run(["logits"], feeds | {name: tensor.numpy() for name, tensor in state.items()})[0]
    assert np.abs(ours.prefill([5, 6, 7]) - logits[0]).max() > 10 * LIMIT


def test_it_is_another_graph_in_standard_operators(second: Any) -> None:
    model = onnx.load(second._model_path)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 23
    assert not {node.domain for node in model.graph.node} & {"com.microsoft"}
