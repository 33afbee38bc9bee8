"""The manifest held against the file: a method's tensors and the window, before a token is fed.

A library that is given another tensor than its program expects says so in its own words, or not at all. `.pte` files
say what their methods take by place (`check_program`), ONNX graphs by name (`check_graph`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lfm2_export.artifact.manifest import PROBE, Manifest, MethodSpec, TensorSpec
from lfm2_export.errors import ArtifactError, one_line

_PTE_DTYPES = {3: "int32", 4: "int64", 5: "float16", 6: "float32", 15: "bfloat16"}  # by ExecuTorch's ScalarType
_COLUMNS = {"xnnpack": 1, "qnn": 2, "onnx_qnn": 2, "coreml": 2}  # which dimension of a cache is the window
_RESIDENT_WINDOW = "get_max_context_len"  # the constant method by which a resident program says it
_ATTENTION, _TABLE = "GroupQueryAttention", 7  # the operator that holds RoPE's tables, and its input `cos_cache`


class _Found(NamedTuple):
    """What a file says of a tensor. A dimension that it leaves open is a name."""

    dtype: str
    shape: list[int | str]


def check_program(program: Any, path: Path, method: MethodSpec, manifest: Manifest) -> None:
    """Check a method of a `.pte` that ExecuTorch has loaded. Raises ArtifactError."""
    names = program.method_names()
    if method.name not in names:
        raise ArtifactError(f"{path}: no method {method.name!r}, only {', '.join(sorted(names))}")
    meta = program.method_meta(method.name)
    for specs, count, found in (
        (method.inputs, meta.num_inputs(), meta.input_tensor_meta),
        (method.outputs, meta.num_outputs(), meta.output_tensor_meta),
    ):
        if count != len(specs):
            raise _differs(path, f"{method.name} has {count} tensors", f"{len(specs)}")
        for place, spec in enumerate(specs):
            _check(path, spec, _of_program(path, spec, found, place), method.max_tokens)
    if manifest.form == "resident":
        found = program.run_method(_RESIDENT_WINDOW, []) if _RESIDENT_WINDOW in names else [None]
        _check_window(path, found[0], manifest.window)
    _check_caches(path, method, manifest)


def check_graph(path: Path, method: MethodSpec, manifest: Manifest) -> None:
    """Check an ONNX file. Its weights, where they lie beside it, are not read. Raises ArtifactError."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # a missing file, and what protobuf says of a damaged one
        raise ArtifactError(f"{path}: cannot load it as ONNX: {one_line(error)}") from error
    optional = {tensor.name for tensor in graph.initializer}  # an input with a default
    for specs, values in ((method.inputs, graph.input), (method.outputs, graph.output)):
        found = {value.name: _of_graph(value) for value in values if value.name not in optional}
        said = {spec.name: spec for spec in specs if spec.name not in optional}
        if strange := found.keys() ^ said.keys():
            name = min(strange)
            raise _differs(path, f"{'a' if name in found else 'no'} tensor {name:.80}", "otherwise")
        for name, spec in said.items():
            _check(path, spec, found[name], None)
    for window in _rotary_lengths(graph):
        _check_window(path, window, manifest.window)
    _check_caches(path, method, manifest)


def _check(path: Path, spec: TensorSpec, found: _Found, limit: int | None) -> None:
    """`limit` is what a program says in the place of a dimension that varies."""
    if spec.name.startswith(PROBE):
        return  # shown for a trace, in whatever shape it has
    wanted = [size if limit is None or isinstance(size, int) else _most(size, limit) for size in spec.shape]
    if found != (spec.dtype, wanted):
        raise _differs(path, f"{spec.name:.80} is {_spelled(*found)}", _spelled(spec.dtype, wanted))


def _most(size: str, limit: int) -> int:
    """The most that a varying dimension can be, `T`, `T+2` or `4*T`, in calls of at most `limit` tokens."""

    def number(factor: str) -> int:
        return int(factor) if factor.isdecimal() else limit

    return sum(prod(map(number, term.split("*"))) for term in size.split("+"))


def _check_caches(path: Path, method: MethodSpec, manifest: Manifest) -> None:
    """Keys and values whose columns the method fixes: they span the window."""
    columns = _COLUMNS.get(manifest.target)
    for spec in method.inputs:
        if columns is not None and spec.name.startswith(("key.", "value.")):
            _check_window(path, spec.shape[columns], manifest.window)


def _check_window(path: Path, found: object, window: int) -> None:
    if found != window:
        raise _differs(path, f"the window is {found}", f"{window}")


def _of_program(path: Path, spec: TensorSpec, found: Any, place: int) -> _Found:
    try:
        tensor = found(place)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: {spec.name:.80} is no tensor there; export again") from error
    return _Found(_PTE_DTYPES.get(tensor.dtype(), f"type {tensor.dtype()}"), list(tensor.sizes()))


def _of_graph(value: Any) -> _Found:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in tensor.shape.dim]
    return _Found(str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def _rotary_lengths(graph: Any) -> set[int | None]:
    """How many positions the tables of each attention hold; None for one whose table is not in the file."""
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    named: Sequence[str] = [node.input[_TABLE] for node in graph.node if node.op_type == _ATTENTION]
    return {tables.get(casts.get(name, name)) for name in named}


def _spelled(dtype: str, shape: Sequence[int | str]) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]"


def _differs(path: Path, found: str, said: str) -> ArtifactError:
    return ArtifactError(f"{path}: {found}, the manifest says {said}; export again")
