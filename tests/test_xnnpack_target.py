"""The XNNPACK target and the ExecuTorch sessions against eager PyTorch: numbers, state laws, delegation, same bytes."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import CHUNKS, SHAPES, VOCAB, config, relative, state_error, tokens, worst
from torch import Tensor, nn
from xnnpack_artifacts import FP32_ERROR, MAX_TOKENS, WINDOW, Made, Make, program, recipe

from lfm2_export.errors import ArtifactError, LoweringError, RecipeError, UsageError, WindowExceededError
from lfm2_export.model.state import is_cache
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.executorch import RUNTIME
from lfm2_export.runtimes.session import Snapshot
from lfm2_export.targets.xnnpack import delegation, methods
from lfm2_export.targets.xnnpack import target as xnnpack

LAST_POSITION_ERROR = 2e-5


class TestFloat:
    @pytest.mark.parametrize("chunks", [*CHUNKS, [MAX_TOKENS], [WINDOW - 1], [17, 23]], ids=str)
    def test_equals_eager_for_any_split(self, make: Make, chunks: list[int]) -> None:
        made = make()
        assert worst(made.session(), made.eager(), chunks) < FP32_ERROR

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    def test_equals_eager_for_any_shape(self, make: Make, shape: dict[str, Any]) -> None:
        made = make(**shape)
        assert worst(made.session(), made.eager(), [1, 2, 9, 1, 1, 4]) < FP32_ERROR

    def test_planted_fault_is_seen(self, make: Make) -> None:
        """One weight of the eager model altered after lowering: the comparison must tell."""
        made = make()
        altered = copy.deepcopy(made.decoder)
        with torch.no_grad():
            altered.layers[3].conv.out_proj.weight[5, 7] += 1.0
        assert worst(made.session(), EagerSession(altered, WINDOW), [9, 1]) > 100 * FP32_ERROR


class TestLaws:
    def test_reset_is_bit_for_bit_a_new_conversation(self, make: Make) -> None:
        session = make().session()
        first = [session.prefill(tokens(7)), session.decode(3)]
        session.reset()
        assert session.position == 0
        again = [session.prefill(tokens(7)), session.decode(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_snapshot_goes_on_exactly_here_and_elsewhere(self, make: Make) -> None:
        made = make()
        session, other = made.session(), made.session()
        session.prefill(tokens(6))
        snapshot = session.state()
        kept = copy.deepcopy(snapshot)
        onward = [session.decode(token) for token in tokens(5)]
        assert state_error(snapshot, kept) == 0
        other.prefill(tokens(30, seed=8))
        for resumed in (session, other):
            resumed.restore(snapshot)
            assert state_error(resumed.state(), snapshot) == 0
            assert all(np.array_equal(a, resumed.decode(t)) for a, t in zip(onward, tokens(5), strict=True))

    def test_eager_and_artifact_exchange_states(self, make: Make) -> None:
        made = make()
        session, eager = made.session(), made.eager()
        eager.prefill(tokens(9))
        session.restore(eager.state())
        assert relative(session.decode(5), eager.decode(5)) < FP32_ERROR

    def test_window_edge_and_one_past_it(self, make: Make) -> None:
        made = make()
        session = made.session()
        assert worst(session, made.eager(), [WINDOW - 1, 1]) < FP32_ERROR
        before = session.state()
        with pytest.raises(WindowExceededError):
            session.decode(1)
        assert state_error(session.state(), before) == 0
        session.reset()
        with pytest.raises(WindowExceededError):
            session.prefill(tokens(WINDOW + 1))
        assert session.position == 0

    def test_padding_is_refused(self, make: Make) -> None:
        session = make().session()
        assert not session.pads
        with pytest.raises(UsageError, match="padding"):
            session.prefill([1, 2], pad_to=4)
        assert session.position == 0

    @pytest.mark.parametrize("chunk", [[], [VOCAB], [-1]], ids=str)
    def test_bad_chunk_is_refused(self, make: Make, chunk: list[int]) -> None:
        session = make().session()
        with pytest.raises(UsageError):
            session.prefill(chunk)
        assert session.position == 0

    def test_logits_outlive_the_next_call(self, make: Make) -> None:
        session = make().session()
        first = session.prefill(tokens(5))
        kept = first.copy()
        session.decode(9)
        assert np.array_equal(first, kept)


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


class TestGroups:
    @pytest.mark.parametrize("form", ["explicit", "resident"])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 2), (4, 1)])
    def test_one_token_and_several_see_the_same_columns(self, make: Make, heads: int, kv_heads: int, form: str) -> None:
        """A call of one token reads the cache in another way: from the first column on, to the window's edge."""
        shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        made = make("xnnpack-fp32", {"form": form}, **shape)
        assert worst(made.session(), made.eager(), [1, 1, 1, 1, 1, 9, 1, 2, 1, *[1] * (WINDOW - 18)]) < FP32_ERROR


class TestLongWindow:
    WINDOW = 32768

    def test_costs_no_memory_in_the_file_or_the_arena(self, make: Make) -> None:
        short = make("xnnpack-fp32", {"window": 64})
        long = make("xnnpack-fp32", {"window": self.WINDOW}, max_position_embeddings=self.WINDOW)
        layers = len(short.decoder.config.layer_types)
        assert abs(long.path.stat().st_size - short.path.stat().st_size) < 1024 * layers
        arenas = [program(made.path).execution_plan[0].non_const_buffer_sizes for made in (short, long)]
        assert arenas[0] == arenas[1]

    def test_its_last_position_equals_eager(self, make: Make) -> None:
        made = make("xnnpack-fp32", {"window": self.WINDOW}, max_position_embeddings=self.WINDOW)
        session, eager = made.session(), made.eager()
        eager.prefill([5])
        random, position = np.random.default_rng(0), self.WINDOW - 1
        snapshot = Snapshot(
            position,
            {
                name: random.standard_normal((*t.shape[:2], position, t.shape[3]) if is_cache(name) else t.shape, "f4")
                for name, t in eager.state().tensors.items()
            },
        )
        for resumed in (session, eager):
            resumed.restore(snapshot)
        assert relative(session.decode(9), eager.decode(9)) < LAST_POSITION_ERROR
        assert state_error(session.state(), eager.state()) < LAST_POSITION_ERROR
        with pytest.raises(WindowExceededError):
            session.decode(1)


_LOWER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from xnnpack_artifacts import lower, recipe
lower(recipe("xnnpack-int8"), Path(sys.argv[1]))
"""


def test_same_bytes_in_every_process(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    script = _LOWER.format(tests=str(folder))
    running = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(folder.parent)}
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / seed)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, log = process.communicate()
        assert process.returncode == 0, log
    digests = {hashlib.sha256((tmp_path / seed / methods.FILE).read_bytes()).hexdigest() for seed in ("1", "2")}
    assert len(digests) == 1


_HELD = """
import gc, sys, tempfile
from pathlib import Path
sys.path.insert(0, {tests!r})
from xnnpack_artifacts import lower, recipe
from executorch.exir.lowered_backend_module import LoweredBackendModule
with tempfile.TemporaryDirectory() as folder:
    lower(recipe("xnnpack-int8"), Path(folder))
gc.collect()
calls = [each for each in gc.get_objects() if type(each) is LoweredBackendModule]
print(len(calls), sum(each._named_data_store_output is not None or bool(each._processed_bytes) for each in calls))
"""


def test_packed_weights_do_not_stay_in_memory_with_what_pytorch_remembers_of_a_trace() -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "-c", _HELD.format(tests=str(folder))]
    environment = os.environ | {"PYTHONPATH": str(folder.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    remembered, holding = map(int, done.stdout.split())
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


class TestRefusals:
    def test_another_runtimes_activations(self) -> None:
        rule = QuantizationRule(match="linear", weight=WeightScheme(bits=4, group=32), activation="int8-block")
        with pytest.raises(RecipeError, match="int8-block"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    def test_integer_weights_with_float_activations(self) -> None:
        rule = QuantizationRule(match="head", weight=WeightScheme(bits=4, group=32, scale="bfloat16"))
        with pytest.raises(RecipeError, match="int8-token"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    def test_activations_of_an_embedding(self) -> None:
        rule = QuantizationRule(match="embedding", weight=WeightScheme(bits=8), activation="int8-token")
        with pytest.raises(RecipeError, match="embedding"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    @pytest.mark.parametrize("kind", ["linear", "conv", "head"])
    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (WeightScheme(bits=8, group=32), "has for a product: int8 per row"),
            (WeightScheme(bits=4, group=16, scale="bfloat16"), "in groups of a multiple of 32"),
            (WeightScheme(bits=4, group=32), "scale: bfloat16"),
            (WeightScheme(bits=4), "in groups of a multiple of 32"),
        ],
        ids=["int8 in groups", "int4 in small groups", "int4 with fp32 scales", "int4 per channel"],
    )
    def test_weights_that_xnnpack_has_no_kernel_for(self, kind: str, weight: WeightScheme, message: str) -> None:
        rule = QuantizationRule(match=kind, weight=weight, activation="int8-token")
        with pytest.raises(RecipeError, match=message):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    @pytest.mark.parametrize("weight", [WeightScheme(bits=8, group=32), WeightScheme(bits=4, group=16)], ids=str)
    def test_an_embedding_may_have_any_group(self, weight: WeightScheme) -> None:
        xnnpack.TARGET.check(recipe(quantization=(QuantizationRule(match="embedding", weight=weight),)), config())

    @pytest.mark.parametrize("options", [{"speed": 1}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "9"}])
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(RecipeError):
            xnnpack.TARGET.check(recipe(options=options), config())

    @pytest.mark.parametrize("kept", [0, 10, 2000, -1])
    def test_truncated_file(self, make: Make, tmp_path: Path, kept: int) -> None:
        made = make()
        (tmp_path / methods.FILE).write_bytes((made.folder / methods.FILE).read_bytes()[:kept])
        with pytest.raises(ArtifactError, match=methods.FILE):
            RUNTIME.open_session(tmp_path, made.manifest())
