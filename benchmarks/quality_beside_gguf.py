"""What each megabyte buys: our recipes beside llama.cpp's own GGUFs of the same checkpoint, on the same tokens.

    python -m benchmarks.quality_beside_gguf                       # nano
    python -m benchmarks.quality_beside_gguf ./my-lfm2 --text held-out.txt

GGUFs are made by llama.cpp's converter from fp32 and by its quantizer, those below 8 bits with an importance matrix of
the very text that our integers are calibrated on as well, and answer through llama.cpp, token by token. Beside our
recipes stands, for each size of a GGUF, what `tune` chooses for at most that many bytes. JSON, Markdown and a plot of
KLD over megabytes go to benchmarks/results/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import kld_over_size
from benchmarks.importance import importance
from benchmarks.peers import gguf
from benchmarks.trial import LONGEST, Trial
from lfm2_export import recipes
from lfm2_export.bench.contenders import Contender, find
from lfm2_export.bench.spec import parse
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.evaluate.teacher_forcing import batched
from lfm2_export.files import ANY, write_text
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.plots import files
from lfm2_export.progress import Progress
from lfm2_export.quantize.method import Method
from lfm2_export.recipes import Recipe
from lfm2_export.tune.allocation import cheapest
from lfm2_export.tune.choices import units
from lfm2_export.tune.search import shortened
from lfm2_export.tune.sensitivity import sensitivities

RESULTS = Path(__file__).parent / "results"
_KINDS = ("Q8_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")
_NEEDS_IMPORTANCE, _IGNORES_IT = ("IQ4_XS",), ("Q8_0",)
_OURS = ("xnnpack-int8", "xnnpack-int4-mixed", "xnnpack-int4", "xnnpack-int4-small")
_UNROUNDED = {"w2 and out_proj": ("*.w2", "*.out_proj"), "all": ("*",)}  # inputs that int8 weights may meet in float
_PLAIN: Method = "nearest"
_BEST: Method = "awq-gptq"
_TUNED_ON = 32  # sequences of the calibration text


def main(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, hub id or nano.")] = "nano",
    tokens: Annotated[int, typer.Option(help="Tokens to predict.")] = 50_000,
    asked: Annotated[int, typer.Option("--questions", help="Held-out questions (checkpoints trained on them).")] = 400,
    sequences: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    text: Annotated[Path | None, typer.Option(help="Judge on this UTF-8 text instead.")] = None,
    cache: Annotated[Path, typer.Option(help="Where llama.cpp's sources and the GGUFs go.")] = Path("out/benchmarks"),
    name: Annotated[str | None, typer.Option(help="Name of the result files.")] = None,
) -> None:
    """Measure GGUFs and our recipes side by side and write the results."""
    try:
        with console.progress(quiet=False) as progress:
            version = gguf.version()
            trial = Trial(source, sequences, tokens, asked, text, progress)
            label = name or Path(trial.checkpoint.name).name
            path = RESULTS / f"quality-beside-gguf-{label}-{date.today().isoformat()}.json"
            result = trial.begin() | {"llama_cpp": version}
            for row in _rows(trial, cache / label, progress):
                result["rows"].append(row)
                write_text(path, json.dumps(result, indent=2) + "\n", True, ANY)  # long work: what is done is kept
            write_text(path.with_suffix(".md"), kld_over_size.page(result), True, ANY)
            files.write(kld_over_size.figure(result), path.with_suffix(".svg"), force=True)
    except Lfm2ExportError as error:
        console.err.print(f"error: {error}", markup=False)
        raise typer.Exit(error.exit_code) from error
    console.out.print(f"wrote {path}, {path.with_suffix('.md').name} and .svg", markup=False)


def _rows(trial: Trial, folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    sizes: set[int] = set()
    for row in _gguf_rows(trial, folder, progress):
        sizes.add(row["bytes"])
        yield row
    progress("tune: measuring modules")
    shipped, others = list(map(recipes.load, _OURS)), [*_unrounded(), *_tuned(trial, sorted(sizes), progress)]
    for recipe, way in [(each, _PLAIN) for each in shipped] + [(each, _BEST) for each in shipped + others]:
        progress(f"{recipe.name}, {way}")
        yield trial.row(recipe, way)


def _gguf_rows(trial: Trial, folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    sources = gguf.sources(folder.parent)
    floats = folder / "F32.gguf"
    progress("llama.cpp: converting")
    gguf.convert(sources, trial.checkpoint.folder, floats, "f32")
    seen = importance(trial.exact, trial.seen)
    for kind in _KINDS:
        for matrix in (None, seen):
            if (kind in _NEEDS_IMPORTANCE and matrix is None) or (kind in _IGNORES_IT and matrix is not None):
                continue
            words = ["llama.cpp", *(["importance matrix"] if matrix else [])]
            progress(f"{kind}, {', '.join(words)}")
            file = folder / f"{kind}{'-importance' if matrix else ''}.gguf"
            gguf.quantize(floats, file, kind, matrix)
            types = gguf.types(file)
            row: dict[str, Any] = {"gguf": kind, "weights": ", ".join(words), "bytes": sum(types.values())}
            yield row | {"types": types} | trial.judge(_Reader(file))


class _Reader:
    """A GGUF, read by llama.cpp one token at a time, as it writes."""

    def __init__(self, file: Path) -> None:
        spec = parse(str(file))
        kind = find(spec.kind)
        kind.prepare(spec, 1)
        self._contender: Contender = kind.load(spec, 1, LONGEST)

    def __call__(self, sequences: TokenSequences) -> list[np.ndarray]:
        return [np.concatenate([self._rows(tokens) for tokens in batch]) for batch in batched(sequences)]

    def _rows(self, tokens: tuple[int, ...]) -> np.ndarray:
        self._contender.stand(0)
        return np.stack([self._contender.feed([token]).copy() for token in tokens[:-1]])


def _unrounded() -> Iterator[Recipe]:
    """Yield `xnnpack-int8` with some inputs left in float: that is where 8 bits lose most."""
    base = recipes.load("xnnpack-int8")
    embedding = base.quantization[0]
    rounded = base.quantization[1].model_copy(update={"match": "*"})
    for what, matches in _UNROUNDED.items():
        rules = [rounded.model_copy(update={"match": match, "activation": None}) for match in matches]
        update = {"name": f"xnnpack-int8, inputs in float: {what}", "quantization": (embedding, *rules, rounded)}
        yield base.model_copy(update=update)


def _tuned(trial: Trial, sizes: list[int], progress: Progress) -> Iterator[Recipe]:
    """Yield what `tune` chooses for at most each of those sizes, its modules measured once."""
    base, found = recipes.load("xnnpack-int4"), units(trial.checkpoint.config, "xnnpack")
    stored = [[unit.stored(option) for option in unit.options] for unit in found]
    costs = sensitivities(trial.exact, found, trial.seen[:_TUNED_ON], progress)
    most = sum(map(max, stored))
    for size in (each for each in sizes if each < most):
        chosen = cheapest(costs, stored, size).chosen
        rules = [rule for unit, at in zip(found, chosen, strict=True) for rule in unit.rules(unit.options[at])]
        yield base.model_copy(update={"name": f"tuned to {size / 1e6:.2f} MB", "quantization": shortened(rules)})


if __name__ == "__main__":
    typer.run(main)
