"""What XNNPACK took of a lowered graph, and the refusal of a heavy operator outside it."""

from __future__ import annotations

from torch.fx import GraphModule

from lfm2_export.artifact.manifest import Delegation
from lfm2_export.errors import LoweringError
from lfm2_export.targets._delegation import outside

# what XNNPACK is there for: one of these outside the delegate is slow enough to be a bug
_HEAVY = ("linear", "addmm", "bmm", "mm", "matmul", "convolution", "softmax")


def delegation(module: GraphModule, delegated: int) -> Delegation:
    """Count the delegate's calls, which hold `delegated` operators, and name the operators on tensors left outside.

    Raises LoweringError naming any matrix product, convolution or softmax outside the delegate.
    """
    calls, left = outside(module)
    heavy = {name: count for name, count in left.items() if name.split(".")[1] in _HEAVY}
    if heavy:
        named = ", ".join(f"{name} × {count}" for name, count in sorted(heavy.items()))
        raise LoweringError(f"XNNPACK did not take every matrix product and convolution; left outside: {named}")
    return Delegation(backend="XNNPACK", calls=calls, delegated=delegated, fallback=left)
