"""Every command, disturbed at every call that changes the file system.

    PYTHONPATH=tests python -m faults [--every N] [--only NAME] [--list]

Prints what is wrong, and at the end how many points were tried. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}


def main() -> int:
    """Try them all, or every N-th."""
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th point")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--points", help="only those whose description has this in it")
    parser.add_argument("--only", action="append", help="this scenario (repeatable)")
    parser.add_argument("--list", action="store_true", help="show the points, try none")
    given = parser.parse_args()
    tried, wrong, _ = sweep(given.every, given.first, given.only, given.list, given.points or "")
    print(f"\n{sum(tried.values())} points: " + ", ".join(f"{name} {count}" for name, count in sorted(tried.items())))
    print(f"{len(wrong)} wrong" if wrong else "after each the old or the new one whole, nothing else touched")
    return 1 if wrong or not tried else 0


def sweep(
    every: int, first: int = 0, only: Collection[str] | None = None, show: bool = False, points: str = ""
) -> tuple[Counter[str], list[str], Counter[str]]:
    """(points tried by kind, what is wrong, points by scenario)."""
    import_all()
    from faults.scenarios import SCENARIOS
    from faults.trial import Ground, MissedError

    tried: Counter[str] = Counter()
    by_scenario: Counter[str] = Counter()
    wrong: list[str] = []
    for scenario in SCENARIOS:
        if only is not None and scenario.name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            ground = Ground(scenario, Path(folder).resolve())
            for number, fault in enumerate(ground.faults()):
                if number % (every * scenario.share) != first % (every * scenario.share):
                    continue
                if points not in str(fault):
                    continue
                if show:
                    print(f"{scenario.name}: {fault}")
                    continue
                try:
                    findings = ground.try_out(fault)
                except MissedError as missed:
                    print(f"{scenario.name}: {fault}: no point: {missed}", flush=True)
                    continue
                tried[fault.name] += 1
                by_scenario[scenario.name] += 1
                for finding in findings:
                    wrong.append(f"{scenario.name}: {fault}: {finding}")
                    print(wrong[-1], flush=True)
            spent = time.monotonic() - begun
            print(f"{scenario.name}: {by_scenario[scenario.name]} points, {spent:.0f} s", flush=True)
    return tried, wrong, by_scenario


def import_all() -> None:
    """Everything a command imports on its way, so that each run is spared it."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in (
        *("lfm2_export.cli.main", "lfm2_export.pipeline", "lfm2_export.bundle.pack", "lfm2_export.bundle.verify"),
        *("lfm2_export.tune.search", "lfm2_export.plots.pareto_front", "lfm2_export.plots.files"),
        *("lfm2_export.report.page", "lfm2_export.report.compare", "lfm2_export.chat.conversation"),
        *("lfm2_export.model.random_init", "onnx", "onnxruntime", "matplotlib.figure", "scipy.optimize"),
        *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
        *("lfm2_export.targets.xnnpack", "lfm2_export.targets.onnx", "lfm2_export.runtimes.executorch"),
        *("executorch.extension.llm.custom_ops", "executorch.exir", "ruamel.yaml", "jinja2", "huggingface_hub"),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
