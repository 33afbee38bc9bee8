"""The caller's state tensors of the in-place transport, and their way to and from the contract's names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lfm2_export.artifact.manifest import MethodSpec
from lfm2_export.model.state import is_cache
from lfm2_export.runtimes.session import Snapshot, check_snapshot


class InPlaceState:
    """Zeroed tensors for every input that the method writes, batch 1: caches `[kv_heads, window, 1, head_dim]`, conv
    states `[1, L-1, hidden]`."""

    def __init__(self, method: MethodSpec) -> None:
        self.tensors = {
            spec.name: torch.zeros([int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype))
            for spec in method.inputs
            if spec.written
        }

    def forget(self) -> None:
        """Zero the conv states; of a cache attention sees only columns below the position."""
        for name, tensor in self.tensors.items():
            if not is_cache(name):
                tensor.zero_()

    def go_on(self, columns: Sequence[Tensor], count: int) -> None:
        """Set the conv states to those as of the first `count` tokens of a call that returned these columns.

        `columns`: `[1, L-1+T, hidden]` of each conv state, in order.
        """
        convolutions = (tensor for name, tensor in self.tensors.items() if not is_cache(name))
        for state, seen in zip(convolutions, columns, strict=True):
            state.copy_(seen[:, count : count + state.shape[1]])

    def parts(self, position: int) -> Iterator[Tensor]:
        """Every tensor in its own layout, a cache cut to the position; views."""
        for name, tensor in self.tensors.items():
            yield tensor[:, :position] if is_cache(name) else tensor

    def snapshot(self, position: int) -> Snapshot:
        return Snapshot(position, {name: self._view(name, position).float().numpy().copy() for name in self.tensors})

    def restore(self, snapshot: Snapshot) -> None:
        """UsageError for a snapshot of another model or window."""
        check_snapshot(snapshot, {name: self._contract_shape(name) for name in self.tensors})
        for name, values in snapshot.tensors.items():
            self._view(name, snapshot.position).copy_(torch.from_numpy(values))

    def _view(self, name: str, position: int) -> Tensor:
        """A state tensor in the contract's shape, a cache cut to the position."""
        tensor = self.tensors[name]
        return tensor[:, :position, 0].unsqueeze(0) if is_cache(name) else tensor.transpose(1, 2)

    def _contract_shape(self, name: str) -> tuple[int, ...]:
        if not is_cache(name):
            batch, columns, hidden = self.tensors[name].shape
            return batch, hidden, columns
        heads, columns, _, width = self.tensors[name].shape
        return 1, heads, columns, width
