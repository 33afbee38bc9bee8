"""Where the time of a decode step goes, by onnxruntime's own profiler, operator by operator, in a session of its own.

Operators are counted, not the waiting between them. ExecuTorch's wheel has no profiler, so only ONNX artifacts have
this.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.files import scratch_folder
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession
from lfm2_export.runtimes.session import Snapshot

STAGES = ("matmul", "head", "attention", "conv", "other")
_PRODUCTS = {"MatMul", "MatMulNBits", "MatMulInteger", "FusedMatMul", "Gemm"}
_WARM = 2  # calls before the profile counts: kernels and caches settle


class _Profiled(OnnxRuntimeSession):
    """The ordinary session with the profiler on, which writes its file into `folder`."""

    def __init__(self, artifact: Path, manifest: Manifest, threads: int, folder: Path) -> None:
        self._prefix = folder / "profile"
        super().__init__(artifact, manifest, threads=threads)

    def _configure(self, options: Any) -> None:
        super()._configure(options)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._prefix)

    def finish(self) -> list[dict[str, Any]]:
        """Return every event of the profile."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_bytes())
        return events


def decode_stages(
    artifact: Path, manifest: Manifest, threads: int, snapshot: Snapshot, token: int, steps: int
) -> dict[str, float]:
    """Share of `steps` decode steps after `snapshot` that each stage takes; the shares add up to 1.

    "head" is the product that makes logits, "matmul" every other one, "conv" what surrounds the short convolutions'
    projections, "attention" the fused operator, "other" norms, gates and lookups.
    """
    with scratch_folder() as folder:
        session = _Profiled(artifact, manifest, threads, folder)
        session.restore(snapshot)
        for _ in range(steps):
            session.decode(token)
        return shares(session.finish(), min(_WARM, steps - 1))


def shares(events: Iterable[dict[str, Any]], skip: int) -> dict[str, float]:
    """Share of each stage in a profile's kernel events, each node's first `skip` calls left out."""
    calls: dict[str, int] = defaultdict(int)
    spent = dict.fromkeys(STAGES, 0.0)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        calls[name] += 1
        if calls[name] > skip:
            spent[_stage(name, str(event["args"]["op_name"]))] += float(event["dur"])
    total = sum(spent.values())
    return {stage: time / total for stage, time in spent.items()}


def _stage(node: str, operator: str) -> str:
    if operator in _PRODUCTS:
        return "head" if node.startswith("lm_head") else "matmul"
    if operator == "GroupQueryAttention":
        return "attention"
    return "conv" if ".conv" in node else "other"
