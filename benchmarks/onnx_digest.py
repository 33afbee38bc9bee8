"""What an ONNX graph computes, as a hash per output: of everything upstream, and of nothing that only names it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper


@dataclass(frozen=True)
class Digest:
    """Two graphs of the same digest compute the same, whatever the names and the order of their nodes."""

    outputs: dict[str, bytes]  # name → hash of its type and of all that it comes from
    inputs: dict[str, bytes]  # name → its type
    versions: dict[str, int]  # the IR's and each operator set's
    operators: Counter[str]  # how often each is there, to say where a difference lies

    def differences(self, other: Digest) -> list[str]:
        """Return a line for each kind of difference, `other` being the newer graph."""
        found = [f"other {what}" for what in ("inputs", "versions") if getattr(self, what) != getattr(other, what)]
        if wrong := sorted(k for k in self.outputs | other.outputs if self.outputs.get(k) != other.outputs.get(k)):
            counts = [
                f"{self.operators[op]} → {other.operators[op]} {op}"
                for op in sorted(self.operators | other.operators)
                if self.operators[op] != other.operators[op]
            ]
            found.append(f"{', '.join(wrong)} computed otherwise ({', '.join(counts) or 'the same operators'})")
        return found


def digest(path: Path) -> Digest:
    """Return the digest of a model file, external data included. ValueError for a graph within a graph."""
    model = onnx.load(path)
    graph = model.graph
    if model.functions or graph.sparse_initializer:
        raise ValueError(f"{path}: functions and sparse tensors are not compared")
    inputs = {given.name: given.type.SerializeToString(deterministic=True) for given in graph.input}
    known = {"": b"absent"} | {name: _hash("input", name, kind) for name, kind in inputs.items()}
    known |= {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    for node in _in_order(graph):
        whole = _hash(node.op_type, node.domain, *_attributes(node), "of", *(known[name] for name in node.input))
        known |= {name: _hash(whole, str(index)) for index, name in enumerate(node.output) if name}
    return Digest(
        {out.name: _hash(known[out.name], out.type.SerializeToString(deterministic=True)) for out in graph.output},
        inputs,
        {"ir": model.ir_version} | {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        Counter(node.op_type for node in graph.node),
    )


def _in_order(graph: GraphProto) -> list[NodeProto]:
    """Nodes after what they read: ONNX demands it, but onnxruntime's quantizer does not write them so."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = {i: {maker[name] for name in node.input if name in maker} for i, node in enumerate(graph.node)}
    return [graph.node[index] for index in TopologicalSorter(reads).static_order()]


def _attributes(node: NodeProto) -> list[bytes]:
    return [_attribute(attribute) for attribute in sorted(node.attribute, key=lambda attribute: attribute.name)]


def _attribute(attribute: AttributeProto) -> bytes:
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSORS):
        raise ValueError(f"attribute {attribute.name!r}: graphs and lists of tensors are not compared")
    if attribute.type == AttributeProto.TENSOR:
        return _hash(attribute.name, _tensor(attribute.t))
    return _hash(attribute.SerializeToString(deterministic=True))


def _tensor(tensor: TensorProto) -> bytes:
    shape = ",".join(str(size) for size in tensor.dims)
    return _hash("tensor", str(tensor.data_type), shape, numpy_helper.to_array(tensor).tobytes())


def _hash(*parts: str | bytes) -> bytes:
    """Hash the parts with their lengths, so that no two lists of them look alike."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.digest()
