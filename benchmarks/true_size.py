"""Trust at true size: every main recipe at the 350M shape, exported and proven, beside its peers, on one page.

    python -m benchmarks.true_size            or make true-size

Weights are random: speed, size and every proof of lowering count, quality says nothing. A second run goes on where the
first ended: proven cells and peers' files are kept. Exit code: that of `lfm2-export matrix`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers import eager, executorch_llm, genai_builder, llama_cpp
from lfm2_export.bench.rounds import bench
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError, UsageError
from lfm2_export.files import ANY, write_text
from lfm2_export.matrix import run
from lfm2_export.matrix.outcome import Matrix
from lfm2_export.matrix.plan import read_plan
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.progress import Progress

PLAN = Path(__file__).with_suffix(".yaml")
FOLDER = Path("out/true-size")
_PEERS = {
    "eager": eager.build,
    "llama.cpp": llama_cpp.all_kinds,
    "genai": genai_builder.build,
    "export_llm": executorch_llm.build,
}
_USUAL = ("eager", "llama.cpp", "genai")


def main(
    peers: Annotated[
        list[str] | None,
        typer.Option("--peer", help="eager, llama.cpp, genai, export_llm (seven minutes more). [the first three]"),
    ] = None,
    contexts: Annotated[str, typer.Option(help="Decode at these contexts, in tokens.")] = "128,1024",
    prefill: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    speed: Annotated[bool, typer.Option(help="Measure speed once all is made.")] = True,
) -> None:
    """Make the checkpoint, carry out the plan beside this file, measure, and write the page."""
    try:
        with console.progress(quiet=False) as progress:
            plan = read_plan(PLAN)
            for entry in plan.checkpoints:
                if not (folder := Path(entry.source)).exists():
                    init_checkpoint(folder.name, folder, progress=progress)
            found = run.run(plan, "true-size", FOLDER, progress=progress)
            if speed and found.of("proven"):
                specs = _ours(found) + _peers(peers or _USUAL, Path(plan.checkpoints[0].source), progress)
                depths = [int(part) for part in contexts.split(",")]
                measured = bench(specs, depths, [prefill], rounds=rounds, progress=progress)
                write_text(FOLDER / "speed.json", measured.model_dump_json(indent=2) + "\n", True, ANY)
                found = run.run(plan, "true-size", FOLDER, bench=measured, progress=progress)  # all stands: pages alone
    except Lfm2ExportError as error:
        console.err.print(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    console.out.print(f"{found.verdict}: {FOLDER / 'index.html'}")
    raise typer.Exit(found.exit_code)


def _ours(found: Matrix) -> list[Spec]:
    return [parse(str(FOLDER / "artifacts" / cell.cell)) for cell in found.of("proven")]


def _peers(names: list[str] | tuple[str, ...], checkpoint: Path, progress: Progress) -> list[Spec]:
    """Those that can be made here; what is left out is said."""
    cache = FOLDER / "peers"
    cache.mkdir(exist_ok=True)
    specs = []
    for name in names:
        if name not in _PEERS:
            raise UsageError(f"--peer {name!r}: there are {', '.join(_PEERS)}")
        try:
            made = _PEERS[name](checkpoint, cache, 1, progress)
            specs += [spec.model_copy(update={"random_weights": True}) for spec in made]
        except Lfm2ExportError as error:
            console.err.print(f"{name} is left out: {error}")
    return specs


if __name__ == "__main__":
    typer.run(main)
