"""onnxruntime with a conversation's state in another device's memory, and no node left to the CPU behind one's back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lfm2_export.errors import ArtifactError
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession, present_name
from lfm2_export.runtimes.session import Snapshot

_RECORD = "session.record_ep_graph_assignment_info"
_ON_SHAPES = frozenset(  # what `targets/onnx/border.py` computes positions and counts with, before the layers
    ("Shape", "Gather", "Sub", "Add", "Unsqueeze", "Equal", "Min", "Max", "Where", "Range", "ReduceSum", "Cast")
)


class Fallen(NamedTuple):
    """A node that another provider than the device's got."""

    operator: str
    name: str

    def __str__(self) -> str:
        return f"{self.operator} {self.name}"


class DeviceSession(OnnxRuntimeSession):
    """One conversation, batch 1 (see `Session`), its state on `_device`; `_buffers` are copies of it here."""

    _device: str  # as onnxruntime names its memory
    _verifies_here = False  # the columns would have to be brought back

    def reset(self) -> None:
        super().reset()
        self._upload()

    def state(self) -> Snapshot:
        for name, value in self._on_device.items():
            self._buffers[name][...] = value.numpy()
        return super().state()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._upload()

    def fallen(self, provider: str) -> list[Fallen]:
        """Return every node, but for those on shapes and positions, that was not given to `provider`."""
        return list(_fallen(self._session.get_provider_graph_assignment_info(), provider))

    def _configure(self, options: Any) -> None:
        super()._configure(options)
        options.add_session_config_entry(_RECORD, "1")

    def _bind_buffers(self) -> None:
        from onnxruntime import OrtValue

        self._on_device = {
            name: OrtValue.ortvalue_from_numpy(buffer, self._device, 0) for name, buffer in self._buffers.items()
        }
        for name, value in self._on_device.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(present_name(name), value)
        self._bind_logits()

    def _upload(self) -> None:
        for name, value in self._on_device.items():
            value.update_inplace(self._buffers[name])


def refuse(fallen: Sequence[Fallen], provider: str) -> None:
    """Raise ArtifactError, with their names, if there are nodes that `provider` has no kernel for."""
    if fallen:
        raise ArtifactError(f"{len(fallen)} nodes have no kernel on {provider}: {', '.join(map(str, fallen[:6]))}")


def _fallen(subgraphs: Iterable[Any], provider: str) -> Iterator[Fallen]:
    for subgraph in subgraphs:
        for node in subgraph.get_nodes() if subgraph.ep_name != provider else ():
            if not (node.op_type in _ON_SHAPES and node.name.startswith(("call/", "logits/"))):
                yield Fallen(node.op_type, node.name)
