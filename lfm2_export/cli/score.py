"""`lfm2-export score`: an artifact on the tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "score"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    task: Annotated[list[str], typer.Option(help="Task of lm-eval, by name (repeatable).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many questions of each task.")] = None,
    few_shot: Annotated[int | None, typer.Option(min=0, help="Solved examples before each. [the task's own]")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    include: Annotated[Path | None, typer.Option(help="Folder with tasks of your own (lm-eval's YAML).")] = None,
    runtime: Annotated[str | None, typer.Option(help="Through this runtime. [the artifact's own]")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Score an artifact on public tasks, or your own, through its real runtime (needs the extra `[score]`)."""
    import json

    from rich.table import Table

    from lfm2_export import runtimes
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.checkpoint.config import from_dict
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer
    from lfm2_export.cli import console
    from lfm2_export.errors import MissingDependencyError, UsageError

    try:
        from lfm2_export.evaluate.harness import score
    except ModuleNotFoundError as error:
        raise MissingDependencyError("lm-eval is not installed; pip install 'lfm2-export[score]'") from error
    opened = open_artifact(artifact)
    manifest = opened.manifest
    tokenizer = ChatTokenizer.load(opened.folder, from_dict(manifest.source.config, f"{artifact}: manifest.json"))
    if tokenizer is None or not tokenizer.eos_ids or (chat and not tokenizer.has_template):
        raise UsageError(f"{artifact} has no tokenizer{' or chat template' if chat else ''}; tasks are text")
    with console.progress(quiet) as progress:
        chosen = runtimes.find(runtime) if runtime else runtimes.first(manifest)
        runtimes.check_runs(chosen.name, manifest)
        progress(f"{chosen.name}: loading")
        session = chosen.open_session(opened.folder, manifest)
        progress(f"{chosen.name}: {', '.join(task)}")
        found = score(session, tokenizer, task, limit=limit, few_shot=few_shot, chat=chat, include=include)
    if as_json:
        console.print_json(json.dumps(found))
        return
    table = Table(title=f"{artifact} through {chosen.name}", title_justify="left")
    for heading in ("task", "figure", "value"):
        table.add_column(heading)
    for one, figures in found.items():
        for figure, value in figures.items():
            table.add_row(one, figure, f"{value:.4f}")
    console.out.print(table)
