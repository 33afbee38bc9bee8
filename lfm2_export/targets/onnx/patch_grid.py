"""Where each patch of an image lies, as values of an ONNX graph: what `model/vision/grid.py` computes, node by node.

Everything is `[B, N] int64` unless said otherwise; an image's rows and columns are `[B, 1]`.
"""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np

from lfm2_export.model.operators import MASKED
from lfm2_export.targets.onnx_graph import Graph

Place = tuple[str, str]  # row and column


class PatchGrid:
    """The grids of a call's images, and how many patches each row of the batch has room for."""

    def __init__(self, graph: Graph, patches: str, grid: str) -> None:
        """`patches [B, N, values]`, `grid [B, 2] int64`: rows and columns."""
        self._graph, self._patches = graph, patches
        both = ("grid/rows", "grid/columns")
        self.rows, self.columns = graph.op_many("Split", "grid/Split", (grid,), both, axis=1, num_outputs=2)

    @cached_property
    def count(self) -> str:
        """`[B, 1] int64`: patches of each image."""
        return self._graph.op("Mul", "grid/count", self.rows, self.columns)

    @cached_property
    def room(self) -> str:
        """`[] int64`: N."""
        graph = self._graph
        shape = graph.op("Shape", "grid/shape", self._patches)
        return graph.op("Gather", "grid/room", shape, graph.int(1), axis=0)

    def numbers(self, name: str, room: str) -> str:
        """`[1, room]`: 0, 1, 2, …"""
        graph = self._graph
        counted = graph.op("Range", f"{name}/Range", graph.int(0), room, graph.int(1))
        return graph.op("Unsqueeze", f"{name}/numbers", counted, graph.ints(0))

    @cached_property
    def mask(self) -> str:
        """`[B, 1, 1, 1, N]`: 0 for a patch, far below for padding."""
        graph = self._graph
        filled = graph.op("Less", "grid/filled", self.numbers("grid/filled", self.room), self.count)
        real = graph.cast("grid/filled_real", filled, graph.real)
        scaled = graph.op("Mul", "grid/emptied", self._less(real, "grid/empty"), self._real("masked", MASKED))
        return graph.op("Unsqueeze", "grid/mask", scaled, graph.ints(1, 2, 3))

    def coordinates(self, name: str, numbers: str, columns: str, merge: int) -> Place:
        """Row and column of patches that come block by block of `merge` × `merge`, over that many columns."""
        graph = self._graph
        across = self._div(f"{name}/blocks", columns, merge)
        block = self._div(f"{name}/block", numbers, merge**2)
        within = graph.op("Mod", f"{name}/within", numbers, graph.int(merge**2))
        by = graph.int(merge)
        top = graph.op("Mul", f"{name}/top", graph.op("Div", f"{name}/block_row", block, across), by)
        left = graph.op("Mul", f"{name}/left", graph.op("Mod", f"{name}/block_column", block, across), by)
        down, right = self._div(f"{name}/down", within, merge), graph.op("Mod", f"{name}/right", within, by)
        return graph.op("Add", f"{name}/row", top, down), graph.op("Add", f"{name}/column", left, right)

    def place(self, name: str, row: str, column: str, merge: int) -> str:
        """Which patch lies there: what `coordinates` turns around."""
        graph, by = self._graph, self._graph.int(merge)
        across = self._div(f"{name}/blocks", self.columns, merge)
        down = graph.op("Mul", f"{name}/above", self._div(f"{name}/block_row", row, merge), across)
        block = graph.op("Add", f"{name}/block", down, self._div(f"{name}/block_column", column, merge))
        first = graph.op("Mul", f"{name}/first", block, graph.int(merge**2))
        inner = graph.op("Mul", f"{name}/inner_row", graph.op("Mod", f"{name}/down", row, by), by)
        within = graph.op("Add", f"{name}/within", inner, graph.op("Mod", f"{name}/right", column, by))
        return graph.op("Add", name, first, within)

    @cache  # noqa: B019  a grid lives as long as its graph is written
    def neighbour(self, tap: int, size: int, merge: int) -> tuple[str, str]:
        """The place of each patch's neighbour under a tap of a kernel of size × size, and whether there is one.

        Patches come block by block of `merge` × `merge`. The second is `[B, N, 1]` real, 1 or 0.
        """
        graph, name = self._graph, f"grid/tap_{size}_{tap}"
        row, column = self.in_blocks(merge)
        above = graph.op("Add", f"{name}/above", row, graph.int(tap // size - size // 2))
        left = graph.op("Add", f"{name}/left", column, graph.int(tap % size - size // 2))
        return self.place(f"{name}/at", above, left, merge), self.within(f"{name}/inside", above, left)

    @cache  # noqa: B019
    def in_blocks(self, merge: int) -> Place:
        """Row and column of each patch, which come block by block of `merge` × `merge`."""
        name = f"grid/blocks_{merge}"
        return self.coordinates(name, self.numbers(name, self.room), self.columns, merge)

    def taken(self, name: str, x: str, index: str) -> str:
        """`x [B, N, C]` at `index [B, M]`, which may point outside where nobody reads the result."""
        graph = self._graph
        last = graph.op("Sub", f"{name}/last", self.room, graph.int(1))
        inside = graph.op("Clip", f"{name}/inside", index, graph.int(0), last)
        at = graph.op("Unsqueeze", f"{name}/at", inside, graph.ints(2))
        return graph.op("GatherND", name, x, at, batch_dims=1)

    def shares(self, name: str, index: str, extent: str, side: int) -> str:
        """`[B, N, side]` real: what each of `side` places of a table gives to place `index` of `extent [B, 1]`."""
        graph = self._graph
        size = graph.cast(f"{name}/extent", extent, graph.real)
        scale = graph.op("Div", f"{name}/scale", self._real(f"side_{side}", side), size)
        last = graph.op("Sub", f"{name}/last", extent, graph.int(1))
        at = graph.cast(f"{name}/at", graph.op("Min", f"{name}/inside", index, last), graph.real)
        centred = graph.op("Add", f"{name}/centred", at, self._real("half", 0.5))
        middle = graph.op("Mul", f"{name}/middle", centred, scale)
        places = graph.constant(f"grid/places_{side}", (np.arange(side) + 0.5).astype(graph.real))
        away = graph.op("Sub", f"{name}/away", places, graph.op("Unsqueeze", f"{name}/middles", middle, graph.ints(2)))
        reach = graph.op("Max", f"{name}/reach", scale, self._real("one", 1.0))
        reach = graph.op("Unsqueeze", f"{name}/reaches", reach, graph.ints(2))
        distance = graph.op("Div", f"{name}/distance", graph.op("Abs", f"{name}/apart", away), reach)
        share = graph.op("Relu", f"{name}/share", self._less(distance, f"{name}/left"))
        total = graph.op("ReduceSum", f"{name}/total", share, graph.ints(2))
        return graph.op("Div", name, share, total)

    def within(self, name: str, row: str, column: str) -> str:
        """`[B, N, 1]` real: 1 where row and column lie in the image's grid, else 0."""
        graph = self._graph
        both = graph.op(
            "And",
            f"{name}/both",
            self._between(f"{name}/rows", row, self.rows),
            self._between(f"{name}/columns", column, self.columns),
        )
        return graph.op("Unsqueeze", name, graph.cast(f"{name}/real", both, graph.real), graph.ints(2))

    def _between(self, name: str, value: str, end: str) -> str:
        graph = self._graph
        begun = graph.op("GreaterOrEqual", f"{name}_begun", value, graph.int(0))
        return graph.op("And", name, begun, graph.op("Less", f"{name}_end", value, end))

    def _less(self, value: str, name: str) -> str:
        """1 less a value."""
        return self._graph.op("Sub", name, self._real("one", 1.0), value)

    def _div(self, name: str, value: str, by: int) -> str:
        return self._graph.op("Div", name, value, self._graph.int(by))

    def _real(self, name: str, value: float) -> str:
        return self._graph.constant(f"grid/{name}", np.array(value, dtype=self._graph.real))
