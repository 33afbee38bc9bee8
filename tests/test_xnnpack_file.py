"""The `.pte` that the XNNPACK target writes: state in place, same bytes, what is delegated, nothing kept in memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import SHAPES, relative, state_error, tokens
from torch import Tensor, nn
from xnnpack_artifacts import FP32_ERROR, WINDOW, Made, Make

from lfm2_export.errors import LoweringError
from lfm2_export.model.state import is_cache
from lfm2_export.runtimes.session import Snapshot
from lfm2_export.targets.xnnpack import delegation, methods


def empty_inputs(made: Made) -> dict[str, Tensor]:
    """The caller's state tensors, as the manifest describes them."""
    specs = [spec for spec in made.lowered.methods[0].inputs if spec.written]
    return {spec.name: torch.zeros([int(n) for n in spec.shape], dtype=getattr(torch, spec.dtype)) for spec in specs}


def contract(state: dict[str, Tensor], position: int) -> Snapshot:
    """Native state tensors in the contract's shapes."""
    shown = {
        name: tensor[:, :position, 0].unsqueeze(0) if is_cache(name) else tensor.transpose(1, 2)
        for name, tensor in state.items()
    }
    return Snapshot(position, {name: tensor.float().numpy().copy() for name, tensor in shown.items()})


class TestInPlace:
    def test_the_callers_own_tensors_are_what_changes(self, make: Make) -> None:
        """The same through both of ExecuTorch's Python interfaces; `Method` gives outputs memory of their own."""
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        made = make()
        module = portable_lib._load_for_executorch(str(made.path))
        method = Runtime.get().load_program(made.path).load_method(methods.FORWARD)
        assert method is not None
        assert method.metadata.num_outputs() == 1
        by_module, by_method, eager = empty_inputs(made), empty_inputs(made), made.eager()
        where = [tensor.data_ptr() for state in (by_module, by_method) for tensor in state.values()]
        for chunk in (tokens(7), [3], tokens(2)):
            call = [torch.tensor([chunk]), torch.tensor([eager.position])]
            outputs = method.execute([*call, *by_method.values()])
            assert len(outputs) == 1
            logits = [module.run_method(methods.FORWARD, [*call, *by_module.values()])[0], outputs[0]]
            assert torch.equal(*logits)
            assert relative(logits[0][0].numpy(), eager.prefill(chunk)) < FP32_ERROR
            for name, tensor in by_module.items():
                assert torch.equal(tensor, by_method[name])
            assert state_error(contract(by_module, eager.position), eager.state()) < FP32_ERROR
        assert where == [tensor.data_ptr() for state in (by_module, by_method) for tensor in state.values()]

    def test_the_manifest_tells_which_inputs_are_written(self, make: Make) -> None:
        made = make("xnnpack-int8")
        method = made.lowered.methods[0]
        assert made.lowered.transport == "inplace"
        assert [spec.name for spec in method.inputs if not spec.written] == ["tokens", "position"]
        written = {spec.name: (spec.dtype, spec.shape) for spec in method.inputs if spec.written}
        assert written["key.2"] == written["value.4"] == ("float32", [2, WINDOW, 1, 16])
        assert written["conv_state.0"] == ("float32", [1, 2, 64])
        assert [spec.name for spec in method.outputs] == ["logits"]


_LOWER = """
import gc, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from xnnpack_artifacts import lower, recipe
from executorch.exir.lowered_backend_module import LoweredBackendModule
lower(recipe("xnnpack-int8"), Path(sys.argv[1]))
gc.collect()
calls = [each for each in gc.get_objects() if type(each) is LoweredBackendModule]
print(len(calls), sum(each._named_data_store_output is not None or bool(each._processed_bytes) for each in calls))
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Of two processes that lower the same, hashing otherwise: the file, and what is still in memory."""
    tests = Path(__file__).parent
    running = []
    for seed in ("1", "2"):
        folder = tmp_path_factory.mktemp("lowered")
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(tests.parent)}
        command = [sys.executable, "-W", "ignore", "-c", _LOWER.format(tests=str(tests)), str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append((folder, subprocess.Popen(command, env=environment, text=True, **pipes)))
    done = []
    for folder, process in running:
        said, log = process.communicate()
        assert process.returncode == 0, log
        done.append((folder / methods.FILE, said))
    return done


def test_same_bytes_in_every_process(processes: list[tuple[Path, str]]) -> None:
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file, _ in processes}
    assert len(digests) == 1


def test_packed_weights_do_not_stay_in_memory_with_what_pytorch_remembers_of_a_trace(
    processes: list[tuple[Path, str]],
) -> None:
    for _, said in processes:
        remembered, holding = map(int, said.split())
        assert remembered  # or the next line would show nothing
        assert holding == 0


class TestDelegation:
    @pytest.mark.parametrize("layers", [SHAPES["conv only"], {}, SHAPES["two attentions in a row"]], ids=str)
    def test_one_call_per_attention_one_after_the_last_one_for_the_head(
        self, make: Make, layers: dict[str, Any]
    ) -> None:
        made = make("xnnpack-int8", **layers)
        report = made.lowered.methods[0].delegation
        assert report is not None
        attentions = len(made.decoder.config.attention_layers)
        assert report.calls == attentions + 2
        assert report.delegated > 20 * len(made.decoder.config.layer_types)
        assert report.fallback.get("llama.custom_sdpa", 0) == 2 * attentions  # of one token, or of several
        assert report.fallback.get("llama.update_cache", 0) == 2 * attentions
        assert report.fallback["quantized_decomposed.embedding_byte"] == 1
        assert list(report.fallback) == sorted(report.fallback)
        light = {"aten._to_copy", "aten.arange", "aten.slice_copy", "aten.select_copy", "aten.full", "aten.view_copy"}
        ours = {"llama.custom_sdpa", "llama.update_cache", "quantized_decomposed.embedding_byte"}
        assert report.fallback.keys() <= light | ours

    def test_a_product_left_outside_is_refused(self) -> None:
        from executorch.exir import to_edge

        product = nn.Linear(4, 4)
        edge = to_edge(torch.export.export(product, (torch.zeros(1, 4),)))
        with pytest.raises(LoweringError, match="mm"):
            delegation.delegation(edge.exported_program().graph_module, 0)
