"""What each recipe costs a model, by each way of choosing its integers: every figure of parity's second question.

    python -m benchmarks.quality                       # nano
    python -m benchmarks.quality ./my-lfm2 --text held-out.txt --recipe xnnpack-int4

The quantized eager model answers for the artifact, which `parity` proves equal to it. Integers are calibrated on text
that the model writes after training questions, and judged on held-out chats (or a text of yours). Results go to
benchmarks/results/ as JSON and as a Markdown table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.trial import Trial
from lfm2_export import recipes
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.files import ANY, write_text
from lfm2_export.quantize.method import Method
from lfm2_export.quantize.scheme import has_integers
from lfm2_export.recipes import Recipe

RESULTS = Path(__file__).parent / "results"
_RECIPES = [
    *(f"xnnpack-{name}" for name in ("fp16", "int8", "int4-mixed", "int4", "int4-small")),
    *(f"onnx-{name}" for name in ("fp16", "int8", "int4-mixed", "int4", "q4f16", "int4-small")),
]
_METHODS: list[Method] = ["nearest", "mse", "awq", "gptq", "awq-gptq"]


def main(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, hub id or nano.")] = "nano",
    recipe: Annotated[list[str] | None, typer.Option(help="Only this recipe (repeatable).")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this way of rounding (repeatable).")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to predict.")] = 50_000,
    asked: Annotated[int, typer.Option("--questions", help="Held-out questions (checkpoints trained on them).")] = 400,
    sequences: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    text: Annotated[Path | None, typer.Option(help="Judge on this UTF-8 text instead.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result files.")] = None,
) -> None:
    """Measure every recipe by every method and write the results."""
    try:
        with console.progress(quiet=False) as progress:
            trial = Trial(source, sequences, tokens, asked, text, progress)
            result = trial.begin()
            label = name or Path(trial.checkpoint.name).name
            path = RESULTS / f"quality-{label}-{date.today().isoformat()}.json"
            for made_by in (recipes.load(each) for each in recipe or _RECIPES):
                for way in _ways(made_by, method):
                    progress(f"{made_by.name}, {way}")
                    result["rows"].append(trial.row(made_by, way))
                write_text(path, json.dumps(result, indent=2) + "\n", True, ANY)  # long work: what is done is kept
                write_text(path.with_suffix(".md"), markdown(result), True, ANY)
    except Lfm2ExportError as error:
        console.err.print(f"error: {error}", markup=False)
        raise typer.Exit(error.exit_code) from error
    console.out.print(f"wrote {path} and {path.with_suffix('.md').name}", markup=False)


def markdown(result: dict[str, Any]) -> str:
    """The table that a person reads; ratios are to `nearest` of the same recipe, which is of the same size."""
    rows: Sequence[dict[str, Any]] = result["rows"]
    kinds = list(result["fp32_accuracy"] or ())
    lines = [
        f"{result['checkpoint']}, {result['parameters'] / 1e6:.1f} M parameters: {rows[0]['tokens']} tokens of "
        f"{result['text']}, integers calibrated on {result['calibration_tokens']} others.",
        "",
    ]
    if kinds:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in result["fp32_accuracy"].items())
        lines += [f"fp32 answers of {result['questions']} held-out questions: {shares}.", ""]
    headings = ["recipe", "weights", "MB", "mean KLD ± s.e.", "of nearest", "median", "p99", "max", "top-1", "top-5"]
    headings += ["perplexity", "clear flips", "margin of flips", *kinds]
    lines += ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    plain = {row["recipe"]: row["mean_kld"] for row in rows if row["weights"] == "nearest"}
    for row in rows:
        cells = [
            f"`{row['recipe']}`",
            row["weights"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['mean_kld']:.2g} ± {row['kld_standard_error']:.1g}",
            f"{row['mean_kld'] / plain[row['recipe']]:.2f}" if row["recipe"] in plain else "–",
            *(f"{row[figure]:.2g}" for figure in ("median_kld", "p99_kld", "max_kld")),
            f"{row['top1']:.2%}",
            f"{row['top5']:.2%}",
            f"× {row['perplexity_ratio']:.4f}",
            "–" if row["clear_flips"] is None else f"{row['clear_flips']:.2%}",
            "–" if row["flip_margin"] is None else f"{row['flip_margin']:.2f}",
            *(f"{row['accuracy'][kind]:.1%}" for kind in kinds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ways(recipe: Recipe, only: Sequence[str] | None) -> list[Method]:
    ways = _METHODS if has_integers(recipe.quantization) else _METHODS[:1]
    return [way for way in ways if not only or way in only]


if __name__ == "__main__":
    typer.run(main)
