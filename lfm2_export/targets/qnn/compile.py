"""From networks (plain or with their scales chosen) to a `.pte` of HTP programs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx.traceback import NodeSource

from lfm2_export.artifact.manifest import Delegation
from lfm2_export.errors import LoweringError, one_line
from lfm2_export.progress.native_output import silenced
from lfm2_export.qualcomm.soc import Soc
from lfm2_export.targets._delegation import outside
from lfm2_export.targets.qnn.shards import CUT, cutting

Examples = Mapping[str, tuple[Tensor, ...]]


def compiled(
    methods: Mapping[str, nn.Module],
    examples: Examples,
    soc: Soc,
    path: Path,
    *,
    half: bool,
    share: bool,
    grouped: bool,
    starts: Sequence[int] = (),
) -> dict[str, Delegation]:
    """Write the methods as one file and say, per method, what the NPU took. LoweringError when QNN gives up.

    `half`: compute in fp16, for networks without scales. `share`: store weights that the methods have in common once.
    `grouped`: some weights have a scale per group; HTP computes those in a 1×1 convolution. As a matrix product with
    more than 128 outputs they gave wrong values (256, 512), or did not compile (384: "no properties registered for
    q::GenPad"). `starts`: the layers that begin a shard of their own (see `shards.py`).
    """
    from executorch.backends.qualcomm.utils.utils import (
        generate_htp_compiler_spec,
        generate_qnn_executorch_compiler_spec,
        to_edge_transform_and_lower_to_qnn,
        update_spill_fill_size,
    )

    options = generate_htp_compiler_spec(use_fp16=half, use_weight_sharing=share, use_multi_contexts=bool(starts))
    spec = generate_qnn_executorch_compiler_spec(soc_model=soc.chipset, backend_options=options)
    with _compiler_output(), shared_origins():
        edge = to_edge_transform_and_lower_to_qnn(
            dict(methods),
            dict(examples),
            {name: list(spec) for name in methods},
            convert_linear_to_conv2d=grouped,
            **cutting(starts),
        )
        reports = {name: _report(edge.exported_program(name).graph_module) for name in methods}
        if starts:  # the contexts of a method run one after the other, so one spill buffer serves all
            update_spill_fill_size([edge.exported_program(name) for name in methods])
        program = edge.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)
    return reports


def _report(module: Any) -> Delegation:
    calls, left = outside(module)
    cuts = left.pop(CUT, 0)
    inside = sum(
        node.op == "call_function"
        for name, part in module.named_children()
        if hasattr(part, "original_module")
        for node in part.original_module.graph.nodes
    )
    return Delegation(backend="QNN", calls=calls, delegated=inside, fallback=left, cuts=cuts)


@contextlib.contextmanager
def shared_origins() -> Iterator[None]:
    """Let nodes share the notes of what they were made from, which nothing changes, instead of each copying them all.

    torch keeps them for every node of every pass; copying took a sixth of the lowering.
    """
    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


@contextlib.contextmanager
def _compiler_output() -> Iterator[None]:
    """Keep the compiler's hundreds of lines off the terminal; of a failure, its last error is the reason."""
    with tempfile.TemporaryFile("w+b") as log:
        try:
            with silenced(1, 2, into=log.fileno()):
                yield
        except (AssertionError, RuntimeError, ValueError) as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            said = [line for line in lines if "[ERROR]" in line and line.partition("]:")[2].strip()]
            reason = said[-1].partition("]:")[2].strip() if said else one_line(error)
            raise LoweringError(f"QNN could not compile the model: {reason[:240]}") from error
