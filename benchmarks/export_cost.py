"""What an export takes at the true shapes: seconds, CPU seconds, peak memory, and how large the file is.

    python -m benchmarks.export_cost --recipe xnnpack-int4 --recipe onnx-int4 --sizes 350m,700m,1.2b,2.6b

Each export runs in a process of its own, whose peak is the kernel's own figure for it, as `/usr/bin/time -v` shows it.
With `--proof` it is the whole default command, and what each of its stages took is kept; without, nothing is proven
(`--no-verify`). The weights are random, but for `--sizes nano`. With `--busy 2` two other processes want a core each
meanwhile: `--sizes nano --recipe onnx-int8 --proof`, with it and without, shows what a busy machine costs.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from benchmarks.cpu import RESULTS
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.checkpoint.nano import PATH as NANO
from lfm2_export.cli import console
from lfm2_export.environment.machine import machine
from lfm2_export.files import ANY, write_text
from lfm2_export.model.random_init import init_checkpoint


class Cost(BaseModel):
    """One export. Bytes and seconds."""

    size: str
    recipe: str
    window: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    checkpoint_bytes: int
    artifact_bytes: int
    proof: bool = False  # whether the artifact was proven as well
    busy: int = 0  # other processes that wanted a core each meanwhile
    stages: dict[str, float] = {}  # seconds of each step that the command announces, in order


def main(
    recipe: Annotated[list[str], typer.Option(help="Recipe to export with (repeatable).")],
    sizes: Annotated[str, typer.Option(help="LFM2 shapes, as `init` names them.")] = "350m,1.2b",
    windows: Annotated[str, typer.Option(help="Tokens of KV cache.")] = "2048",
    proof: Annotated[
        bool, typer.Option("--proof", help="Prove each artifact too: the command as a user types it.")
    ] = False,
    busy: Annotated[int, typer.Option(help="Processes beside it that want a core each.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path("out/benchmarks"),
) -> None:
    """Export every size with every recipe, one after the other, and write a table."""
    costs = []
    with console.progress(quiet=False) as progress, _others(busy):
        for size in sizes.split(","):
            checkpoint = NANO if size == "nano" else cache / size / "checkpoint"
            if not checkpoint.exists():
                init_checkpoint(size, checkpoint, progress=progress)
            for name in recipe:
                for window in windows.split(","):
                    progress(f"{size}: {name}, window {window}")
                    cost = _measure(checkpoint, size, name, int(window), cache, proof)
                    costs.append(cost.model_copy(update={"busy": busy}))
    report = {
        "machine": machine(),
        "random_weights": "nano" not in sizes.split(","),
        "exports": [cost.model_dump() for cost in costs],
    }
    RESULTS.mkdir(exist_ok=True)
    name = f"export-cost{'-with-proof' if proof else ''}{'-busy' if busy else ''}-{date.today().isoformat()}"
    write_text(RESULTS / f"{name}.json", json.dumps(report, indent=2) + "\n", True, ANY)
    write_text(RESULTS / f"{name}.md", _page(costs, machine()), True, ANY)
    print(_page(costs, machine()))


@contextmanager
def _others(count: int) -> Iterator[None]:
    """So many processes that compute for as long as the block lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measure(checkpoint: Path, size: str, recipe: str, window: int, cache: Path, proof: bool) -> Cost:
    """Export once, look at the result, throw it away."""
    output = cache / "export-cost"
    options = ["--recipe", recipe, "--window", str(window), "--output", str(output), "--force"]
    options += [] if proof else ["--no-verify"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lfm2_export", "export", str(checkpoint), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here, with its figures
    if process.returncode != 0:
        print(said, file=sys.stderr)
        raise typer.Exit(process.returncode)
    artifact = sum(entry.size for entry in open_artifact(output).manifest.files.values())
    shutil.rmtree(output)
    return Cost(
        size=size,
        recipe=recipe,
        window=window,
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_bytes=_bytes(used),
        checkpoint_bytes=sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
        artifact_bytes=artifact,
        proof=proof,
        stages=_stages(said, seconds),
    )


def _stages(said: str, seconds: float) -> dict[str, float]:
    """Seconds between the announcements `[12.3 s] what`, by what was announced; the last one lasts to the end."""
    begun = [(float(at), what) for at, what in re.findall(r"^\[ *([\d.]+) s\] (.*)$", said, flags=re.MULTILINE)]
    ends = [at for at, _ in begun[1:]] + [seconds]
    return {what: round(end - at, 1) for (at, what), end in zip(begun, ends, strict=True)}


def _bytes(used: resource.struct_rusage) -> int:
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _page(costs: list[Cost], where: dict[str, str]) -> str:
    lines = [
        "# Cost of an export",
        "",
        "| shape | recipe | window | proof | busy | s | CPU s | peak GB | checkpoint GB | artifact MB |",
    ]
    lines.append("| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for cost in costs:
        row: list[object] = [cost.size, cost.recipe, cost.window, "yes" if cost.proof else "no", cost.busy]
        row += [f"{cost.seconds:.0f}", f"{cost.cpu_seconds:.0f}", f"{cost.peak_bytes / 1e9:.2f}"]
        row += [f"{cost.checkpoint_bytes / 1e9:.2f}", f"{cost.artifact_bytes / 1e6:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    for cost in costs:
        if cost.proof:
            lines += ["", f"{cost.size}, {cost.recipe}:", "", "| s | share | stage |", "| ---: | ---: | --- |"]
            stages = ((seconds, seconds / cost.seconds, what) for what, seconds in cost.stages.items())
            lines += [f"| {took:.1f} | {share:.0%} | {what} |" for took, share, what in stages if took >= 0.5]
    facts = [
        "Random weights, but for nano; where `proof` is no, nothing was proven (`--no-verify`).",
        "`busy`: so many other processes wanted a core each meanwhile.",
        f"Machine: {'; '.join(where.values())}.",
    ]
    facts.append("Peak: the kernel's figure for the process; pages of the mapped checkpoint count.")
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"


if __name__ == "__main__":
    typer.run(main)
