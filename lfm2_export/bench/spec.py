"""Who takes part in a comparison: what was named on the command line, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lfm2_export.errors import UsageError
from lfm2_export.extras import require

GENAI, MANIFEST = "genai_config.json", "manifest.json"  # what a folder is known by
_EAGER = "eager:"


class Spec(BaseModel):
    """One contender: its kind (the module of `contenders/` that runs it), where it lies, its name in the tables, and of
    an artifact the runtime, if not its own, and where drafts come from, if it shall have them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["artifact", "native", "gguf", "eager", "pte", "genai"]
    path: Path
    name: str
    runtime: str | None = None
    draft: str | None = None
    random_weights: bool | None = None  # None where the file does not say


def parse(text: str) -> Spec:
    """Read a contender: a `FOLDER` (artifact, or genai's builder), `FILE.gguf`, `FILE.pte` of (tokens, position) →
    logits, or `eager:CHECKPOINT`.

    Raises UsageError for a place that is none of them, ArtifactError or CheckpointError for one that does not hold
    together, MissingDependencyError when the library that runs it is absent.
    """
    if text.startswith(_EAGER):
        return _eager(text.removeprefix(_EAGER))
    path = Path(text).expanduser()
    if path.is_dir():
        return _genai(path) if (path / GENAI).is_file() and not (path / MANIFEST).is_file() else _artifact(path)
    if not path.is_file():
        raise UsageError(f"{text}: no such artifact folder, .gguf or .pte file")
    if path.suffix == ".gguf":
        require("llama_cpp", "llama-cpp-python", "bench", text)
        return Spec(kind="gguf", path=path, name=path.stem)
    if path.suffix == ".pte":
        return Spec(kind="pte", path=path, name=path.stem)
    raise UsageError(f"{text}: neither an artifact folder nor a .gguf or .pte file")


def drafting(spec: Spec, draft: str) -> Spec:
    """An artifact's contender that is measured with drafts too. UsageError for any other kind."""
    if spec.kind != "artifact":
        raise UsageError(f"{spec.name}: --draft is for an artifact and a runtime in this process")
    return spec.model_copy(update={"draft": draft})


def through(spec: Spec, runtime: str) -> Spec:
    """An artifact's contender, run by the runtime of that name instead of its own.

    Raises UsageError for what is no artifact, a runtime that does not run it, or one whose speed says nothing;
    MissingDependencyError for one that is not built.
    """
    from lfm2_export import runtimes
    from lfm2_export.artifact.folder import open_artifact

    if spec.kind != "artifact":
        raise UsageError(f"{spec.path}: --runtime chooses how an artifact folder is run, and this is none")
    manifest = open_artifact(spec.path).manifest
    chosen = runtimes.find(runtime)
    runtimes.check_runs(runtime, manifest)
    if chosen is runtimes.first(manifest):
        return spec
    if chosen.emulates:
        raise UsageError(f"runtime {runtime!r} emulates a processor, so its speed says nothing")
    chosen.version()
    chosen.prepare(spec.path, manifest)  # before any clock runs
    kind = "native" if chosen.name == "native" else spec.kind  # its model lives in a process of its own
    return spec.model_copy(update={"kind": kind, "name": f"{spec.name} {runtime}", "runtime": runtime})


def distinct(specs: Sequence[Spec]) -> list[Spec]:
    """The same contenders with different names: a name that occurs twice gets its number."""
    names = [spec.name for spec in specs]
    return [
        spec.model_copy(update={"name": f"{spec.name} ({number})"}) if names.count(spec.name) > 1 else spec
        for number, spec in enumerate(specs, start=1)
    ]


def _artifact(folder: Path) -> Spec:
    from lfm2_export.artifact.folder import open_artifact

    manifest = open_artifact(folder).manifest
    return Spec(kind="artifact", path=folder, name=folder.resolve().name, random_weights=manifest.source.random_weights)


def _genai(folder: Path) -> Spec:
    require("onnxruntime_genai", "onnxruntime-genai", "bench", f"{folder} (a {GENAI} and no {MANIFEST})")
    return Spec(kind="genai", path=folder, name=folder.resolve().name)


def _eager(source: str) -> Spec:
    from lfm2_export.model.load import open_checkpoint

    require("transformers", "transformers", "bench", f"{_EAGER}{source}")
    checkpoint = open_checkpoint(source)
    name = f"eager bf16 {Path(checkpoint.name).name}"
    return Spec(kind="eager", path=checkpoint.folder, name=name, random_weights=checkpoint.random_weights)
