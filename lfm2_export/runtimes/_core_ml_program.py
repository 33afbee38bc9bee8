"""The Core ML model inside a `.pte`, computed operator by operator as coremltools defines each of them, in numpy.

coremltools folds constants by these definitions. Here every input is one: so the very program that Apple's compiler
gets is computed, in the precision that it states, where there is no Core ML. A product's sum is held in fp32 and its
result rounded to fp16, which is also what Apple's processors do as far as is known; they may round elsewhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm2_export.errors import ArtifactError, one_line
from lfm2_export.files import scratch_folder
from lfm2_export.progress.native_output import silenced

_REFERENCE = b"CMJR"  # before the JSON by which a method names the model's function


class _Value(NamedTuple):
    """What coremltools wants around a value."""

    val: np.ndarray | bool


class _Method(NamedTuple):
    """A method's function, and how the method's tensors lie in it."""

    function: Any
    inputs: list[str]  # the function's names, in the method's order
    outputs: list[int]  # places among the function's results, in the method's order


class CoreMlProgram:
    """The methods of a `.pte` that is one call into Core ML each, by name. Raises ArtifactError for any other file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with silenced(2):  # coremltools says there what a Mac would have
                before = logging.root.manager.disable
                logging.disable(logging.WARNING)
                try:
                    self._methods = _methods(path.read_bytes())
                finally:
                    logging.disable(before)
        except (OSError, ValueError, LookupError, AssertionError, RuntimeError, AttributeError) as error:
            raise ArtifactError(f"{path}: holds no Core ML model that can be read: {one_line(error)}") from error

    def __call__(self, method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        function, names, outputs = self._methods[method]
        for name, tensor in zip(names, inputs, strict=True):
            function.inputs[name]._sym_val = _Value(tensor.numpy())
        for operator in function.operations:
            if operator.op_type != "const":
                self._compute(operator)
        # Core ML hands fp16 over, ExecuTorch makes it the fp32 of the method's own tensors
        return [torch.from_numpy(np.array(function.outputs[place].val, np.float32, order="C")) for place in outputs]

    def _compute(self, operator: Any) -> None:
        """Give an operator's outputs their values."""
        if operator.op_type == "silu":  # the one that coremltools never folds
            x = operator.x.val
            made = x / (1 + np.exp(-x.astype(np.float32)))
        else:
            try:
                made = operator.value_inference()
            except NotImplementedError as error:  # what coremltools raises of an operator that it does not fold
                raise ArtifactError(f"{self.path}: coremltools cannot compute {operator.op_type!r} here") from error
        values = made if isinstance(made, tuple | list) else (made,)
        for variable, value in zip(operator.outputs, values, strict=True):
            variable._sym_val = _Value(np.asarray(value, _dtype(variable)))


def _dtype(variable: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(variable.dtype)


def _methods(data: bytes) -> dict[str, _Method]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(data)
    assert file.named_data is not None, "it has no named data"
    models: dict[str, tuple[Any, Any]] = {}
    found = {}
    for plan in file.program.execution_plan:
        (delegate,), ((call,),) = plan.delegates, [chain.instructions for chain in plan.chains]
        reference = file.program.backend_delegate_data[delegate.processed.index].data
        assert reference.startswith(_REFERENCE), f"{plan.name} is not a function of a shared model"
        named = json.loads(reference.removeprefix(_REFERENCE))
        key, name = named["key"], named["functionName"]
        if key not in models:
            models[key] = _model(file.named_data.buffers[file.named_data.pte_data[key].buffer_index])
        functions, described = models[key]
        passed, count = call.instr_args.args, len(described[name]["inputNames"])
        taken = dict(zip(passed[:count], described[name]["inputNames"], strict=True))
        given = {value: place for place, value in enumerate(passed[count:])}
        order = [output.name for output in functions[name].outputs]
        places = [order.index(result) for result in described[name]["outputNames"]]
        found[plan.name] = _Method(
            functions[name], [taken[value] for value in plan.inputs], [places[given[value]] for value in plan.outputs]
        )
    return found


def _model(data: bytes) -> tuple[Any, Any]:
    """The functions of a flattened Core ML model, and what ExecuTorch says of each."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models import MLModel
    from executorch.backends.apple.coreml import executorchcoreml

    with scratch_folder() as scratch:
        assert executorchcoreml.unflatten_directory_contents(data, str(scratch)), "its files do not unpack"
        metadata = next(scratch.rglob("metadata.json"))
        model = MLModel(str(metadata.parent / "model.mlpackage"), skip_model_load=True)
        specification = model.get_spec()
        program = load(specification, specification.specificationVersion, model.weights_dir)
        for function in program.functions.values():
            for constant in function.find_ops(op_type="const"):
                if isinstance(constant.val.val, np.bool_):  # numpy takes no bool of its own for an option
                    constant.outputs[0]._sym_val = _Value(bool(constant.val.val))
        return program.functions, json.loads(metadata.read_bytes())["methods"]
