"""`lfm2-export init`: a checkpoint of a true LFM2 shape with random weights, to try an export without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "init"


def run(
    size: Annotated[
        str,
        typer.Option(
            help="350m, 700m, 1.2b, 2.6b, lfm2-8b-a1b, lfm3-1.7b, lfm2-vl-450m, lfm2-vl-1.6b, lfm3-vl-2b, or a "
            "config.json's path."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make. [lfm2-SIZE-random]")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what this command made there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a checkpoint of a true shape with random weights (bf16)."""
    from lfm2_export.cli import console
    from lfm2_export.model.random_init import SIZES, VISION_SIZES, init_checkpoint

    name = size.lower() if size.lower() in {*SIZES, *VISION_SIZES} else Path(size).stem
    folder = output or Path(f"{name}-random" if name.startswith("lfm") else f"lfm2-{name}-random")
    with console.progress(quiet) as progress:
        init_checkpoint(size, folder, seed=seed, force=force, progress=progress)
    console.out.print(f"wrote {folder} (random weights)")
