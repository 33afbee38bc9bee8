"""The CUDA row, on a machine with an NVIDIA GPU: both fp16 recipes proven on it, and how fast they are.

    python -m benchmarks.cuda --sizes nano,350m

It needs onnxruntime-gpu and a torch built with CUDA, and no executorch. Every artifact is proven through
`onnxruntime-cuda` against eager PyTorch on the CPU and, again, on the GPU; `bench` then runs it on the GPU beside the
same file on the CPU. Reports are kept whole in `benchmarks/results`. Any size but nano has random weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cpu import RESULTS
from lfm2_export.files import ANY, write_text

NANO = "nano"
RECIPES = ("onnx-fp16", "onnx-q4f16")
_COMMAND = "from lfm2_export.cli.main import run; run()"


def main(
    sizes: Annotated[str, typer.Option(help="nano, and LFM2 shapes as `init` names them.")] = "nano,350m",
    window: Annotated[int, typer.Option(help="Tokens of KV cache.")] = 2048,
    cache: Annotated[Path, typer.Option(help="Where checkpoints and artifacts are kept.")] = Path("out/benchmarks"),
    results: Annotated[Path, typer.Option(help="Where the reports go.")] = RESULTS,
) -> None:
    """Export, prove and measure every size with both recipes; exit code 1 if a proof fails."""
    failed = []
    for size in sizes.split(","):
        checkpoint = _checkpoint(size, cache)
        for recipe in RECIPES:
            folder = cache / size / recipe
            limits = [] if size == NANO else ["--set", f"window={window}"]
            _run("export", checkpoint, "--recipe", recipe, *limits, "-o", folder, "--no-verify", "--force", "-q")
            for reference in ("cpu", "cuda"):
                report = _run(
                    *("parity", folder, "--checkpoint", checkpoint, "--runtime", "onnxruntime-cuda"),
                    *("--reference", reference, "--json", "-q"),
                )
                failed += [] if report["passed"] else [f"{size} {recipe} against {reference}"]
                _keep(results, f"{size}-{recipe}-parity-{reference}", report)
            contexts = "128,1024" if size == NANO else f"128,{window}"
            chosen = ("--runtime", "onnxruntime-cuda", "--runtime", "onnxruntime")
            speed = _run("bench", folder, *chosen, "--contexts", contexts, "--prefill", "128,512", "--json", "-q")
            _keep(results, f"{size}-{recipe}-bench", speed)
    if failed:
        print("failed: " + "; ".join(failed), file=sys.stderr)
        raise typer.Exit(1)


def _checkpoint(size: str, cache: Path) -> str:
    folder = cache / size / "checkpoint"
    if size != NANO and not folder.exists():
        _run("init", "--size", size, "-o", folder, "-q")
    return NANO if size == NANO else str(folder)


def _run(*arguments: object) -> dict[str, object]:
    """Run a command of the CLI and return what it printed as JSON, if it did; exit code 1 is a failed proof."""
    words = list(map(str, arguments))
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _COMMAND, *words], stdout=subprocess.PIPE, text=True, env=os.environ)
    print(f"{time.perf_counter() - started:6.1f} s  {' '.join(words)}", flush=True)
    if done.returncode > 1 or (done.returncode and "--json" not in words):
        print(done.stdout, flush=True)
        raise typer.Exit(done.returncode)
    return json.loads(done.stdout) if "--json" in words else {}


def _keep(results: Path, name: str, report: dict[str, object]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / f"cuda-{name}-{date.today().isoformat()}.json", json.dumps(report, indent=2) + "\n", True, ANY)


if __name__ == "__main__":
    typer.run(main)
