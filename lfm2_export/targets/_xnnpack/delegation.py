"""Where the operators of a lowered graph ended up, and the refusal of a lowering that left a heavy one behind."""

from __future__ import annotations

from collections import Counter

from executorch.devtools.backend_debug import get_delegation_info
from torch.fx import GraphModule

from lfm2_export.artifact.manifest import Delegation
from lfm2_export.errors import LoweringError

# what XNNPACK is there for: one of these outside the delegate is slow enough to be a bug
_HEAVY = ("linear", "addmm", "bmm", "_mm", "matmul", "convolution", "softmax")


def delegation(module: GraphModule) -> Delegation:
    """Count the delegated operators, the delegate calls, and name what stayed outside.

    Raises LoweringError naming any matrix product, convolution or softmax outside the delegate.
    """
    info = get_delegation_info(module)
    fallback = Counter(
        {
            _plain(name): counts.non_delegated
            for name, counts in info.delegation_by_operator.items()
            if counts.non_delegated and name.startswith(("aten_", "quantized_", "llama_", "torchao_", "dim_order_"))
        }
    )
    heavy = {name: count for name, count in fallback.items() if any(part in name for part in _HEAVY)}
    if heavy:
        named = ", ".join(f"{name} × {count}" for name, count in sorted(heavy.items()))
        raise LoweringError(f"XNNPACK did not take every matrix product and convolution; left outside: {named}")
    return Delegation(
        backend="XNNPACK",
        calls=info.num_delegated_subgraphs,
        delegated=info.num_delegated_nodes,
        fallback=dict(sorted(fallback.items())),
    )


def _plain(name: str) -> str:
    """`aten_view_copy_default` → `view_copy`."""
    return name.removeprefix("aten_").removesuffix("_default")
