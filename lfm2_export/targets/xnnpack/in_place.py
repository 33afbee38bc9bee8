"""State that the graph writes in place: without the full-size copies that functionalization leaves behind."""

from __future__ import annotations

from executorch.exir.dialects._ops import ops
from torch.export import ExportedProgram


def drop_state_copies(program: ExportedProgram) -> None:
    """Erase `copy(state, x)`, whose value is x, from an edge program. Mutations stay, as outputs of their source.

    Every decomposition pass wraps each mutated input or buffer in one more such copy, of the whole cache: at a window
    of 32768 tokens each would move 64 MB a token and layer.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is ops.edge.aten.copy.default:
            target, value = node.args[:2]
            if target.meta["val"].shape == value.meta["val"].shape:
                node.replace_all_uses_with(value)
                graph.erase_node(node)
    for spec, output in zip(program.graph_signature.output_specs, graph.output_node().args[0], strict=True):
        spec.arg.name = output.name
    program.graph_module.recompile()
