"""Two artifacts, or two parity reports, side by side: what differs, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.artifact.manifest import GateResult, Manifest
from lfm2_export.errors import UsageError, field_error
from lfm2_export.parity.report import ParityReport
from lfm2_export.report.comparison import Comparison, Row
from lfm2_export.report.formatting import figures, megabytes, number
from lfm2_export.report.reading import read_json

Facts = dict[tuple[str, str], str]  # (section, name) → value as text


def compare(left: Path, right: Path) -> Comparison:
    """Each side an artifact folder or a JSON report of `parity`.

    An artifact has the gates of its own proof; divergence and accuracy beyond them are in a report only.
    Raises UsageError or ArtifactError for a side that is neither.
    """
    ours, theirs = _facts(left), _facts(right)
    names = _names(left, right)
    rows = [
        Row(section=section, name=name, left=ours.get((section, name)), right=theirs.get((section, name)))
        for section, name in _merged(ours, theirs)
    ]
    recipe = [row for row in rows if row.section == "recipe"]
    kept = [row for row in rows if row.section != "recipe" or row.differs]  # a recipe is long, and mostly the same
    if recipe and not any(row.differs for row in recipe):
        kept.append(Row(section="recipe", name="every setting", left="the same", right="the same"))
    return Comparison(left=names[0], right=names[1], rows=kept)


def _facts(path: Path) -> Facts:
    if path.is_dir():
        return _of_artifact(open_artifact(path).manifest)
    try:
        return _of_report(ParityReport.model_validate_json(read_json(path)))
    except ValidationError as error:
        raise UsageError(
            f"{path}: neither an artifact folder nor a JSON report of `parity`: {field_error(error)}"
        ) from error


def _of_artifact(manifest: Manifest) -> Facts:
    facts: Facts = {("verdict", "parity"): manifest.verdict, ("verdict", "checkpoint"): manifest.source.name}
    facts["verdict", "weights"] = manifest.source.weights_sha256[:16]
    facts |= _gates(manifest.parity)
    facts |= _sizes({name: entry.size for name, entry in manifest.files.items()})
    return facts | _common(manifest.versions, manifest.recipe)


def _of_report(report: ParityReport) -> Facts:
    facts: Facts = {("verdict", "parity"): report.verdict}
    facts |= {("verdict", "checkpoint"): report.source, ("verdict", "weights"): report.weights_sha256[:16]}
    facts |= _gates(report.gates)
    for runtime in report.runtimes:
        for label, value in figures(runtime.quality) if runtime.quality else ():
            facts["quality", f"{runtime.runtime}: {label}"] = value
        for kind, share in (runtime.task_accuracy or {}).items():
            facts["tasks", f"{runtime.runtime}: {kind}"] = f"{share:.1%}"
    return facts | _sizes(report.files) | _common(report.versions, report.settings)


def _gates(gates: Iterable[GateResult]) -> Facts:
    return {
        ("gates", f"{gate.runtime}: {gate.name}"): f"{number(gate.value)} ({gate.status}, limit {number(gate.limit)})"
        for gate in gates
    }


def _sizes(files: dict[str, int]) -> Facts:
    facts: Facts = {("size", name): megabytes(size) for name, size in files.items()}
    return facts | {("size", "all"): megabytes(sum(files.values()))}


def _common(versions: dict[str, str], recipe: dict[str, Any]) -> Facts:
    facts: Facts = {("versions", name): version for name, version in versions.items()}
    return facts | {("recipe", key): value for key, value in _leaves(recipe)}


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list) and value:
        for index, child in enumerate(value):
            yield from _leaves(child, f"{at}.{index}")
    else:
        yield at, str(value)


def _merged(ours: Facts, theirs: Facts) -> list[tuple[str, str]]:
    """Every key once, sections in one order, the left side's order within them."""
    order = ["verdict", "gates", "quality", "tasks", "size", "versions", "recipe"]
    return sorted(dict.fromkeys([*ours, *theirs]), key=lambda key: order.index(key[0]))


def _names(left: Path, right: Path) -> tuple[str, str]:
    """What the sides are called: as short as keeps them apart."""
    short = left.resolve().name, right.resolve().name
    return short if short[0] != short[1] else (str(left), str(right))
