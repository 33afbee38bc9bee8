"""Whether two proofs of one artifact say the same: the figures of two JSON reports, all of them, side by side.

    python -m benchmarks.same_reports OLD.json NEW.json

For a change of the proof's own code: the same artifact, proven by the tree before (`PYTHONPATH=TREE python -m
lfm2_export parity … --report OLD.json`) and by the tree at hand. A figure may differ by the order of sums. Beyond that
one that measures how far an artifact is from eager may differ by what eager is from itself where activations are
rounded (the report's own noise floor: summing in another order is one such disturbance). Exit code 1 for any other
difference, or a figure that only the left side has. Seconds, versions and commands are no figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

SUMS = 1e-5  # relative: what fp32 sums in another order leave open
_SMALLEST = 5e-6  # and absolute, of errors that are relative themselves
_DIGITS = {"details.": 4, "gates.": 3}  # what reports round to: the order of sums may tip the last one
_NO_FIGURES = {
    *("seconds", "load_seconds", "versions", "version", "reproduce"),
    *("artifact", "files", "size_bytes", "settings"),
}
_NOISY = ("lowering.", "laws.", "details.layers", "details.drift", "gates.lowering", "gates.law")


class Difference(NamedTuple):
    """A figure by its path in the report, what both sides say, and why it counts or does not."""

    path: str
    left: Any
    right: Any
    verdict: str  # "sums", "noise", "differs", "left only", "right only"


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield every figure that is not the same to the last digit."""
    noise = {name: max(_noise(left, name), _noise(right, name)) for name in _runtimes(left) | _runtimes(right)}
    ours, theirs = dict(_figures(left)), dict(_figures(right))
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs:
            yield Difference(path, ours[path], None, "left only")
        elif path not in ours:
            yield Difference(path, None, theirs[path], "right only")
        elif (a := ours[path]) != (b := theirs[path]):
            yield Difference(path, a, b, _verdict(path, a, b, noise))


def _verdict(path: str, a: Any, b: Any, noise: Mapping[str, float]) -> str:
    numbers = [isinstance(each, int | float) and not isinstance(each, bool) for each in (a, b)]
    if not all(numbers):
        return "differs"
    runtime, _, rest = path.partition("/")
    digits = next((digits for part, digits in _DIGITS.items() if rest.startswith(part)), None)
    last = 0.0 if digits is None else _last_digit(max(abs(a), abs(b)), digits)
    if abs(a - b) <= max(_SMALLEST, SUMS * max(abs(a), abs(b)), last):
        return "sums"
    return "noise" if rest.startswith(_NOISY) and abs(a - b) <= noise.get(runtime, 0.0) else "differs"


def _last_digit(value: float, digits: int) -> float:
    """One unit, and a little, in the last of so many digits."""
    return 1.01 * 10.0 ** (math.floor(math.log10(value)) + 1 - digits) if value else 0.0


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`runtime/key.path`, value; laws and gates by their names, not their places."""
    yield from _leaves({key: value for key, value in report.items() if key != "runtimes"}, "")
    for runtime in report["runtimes"]:
        named = {law[0]: law[1:3] for law in runtime.get("laws", [])}
        gates = {gate["name"]: [gate["status"], gate["value"], gate["limit"]] for gate in runtime.get("gates", [])}
        rest = {key: value for key, value in runtime.items() if key not in ("laws", "gates", "runtime")}
        for path, value in _leaves(rest | {"laws": named, "gates": gates}, ""):
            yield f"{runtime['runtime']}/{path}", value


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key not in _NO_FIGURES:
                yield from _leaves(child, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _leaves(child, f"{at}.{number}")
    else:
        yield at, value


def _runtimes(report: Mapping[str, Any]) -> set[str]:
    return {runtime["runtime"] for runtime in report["runtimes"]}


def _noise(report: Mapping[str, Any], name: str) -> float:
    """How far eager is from its disturbed self in that runtime's report; 0 where no activation is rounded."""
    lowering = next((each.get("lowering") for each in report["runtimes"] if each["runtime"] == name), None) or {}
    floor = lowering.get("floor") or {}
    return float(floor.get("max_error", 0.0))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    left: Annotated[Path, typer.Argument(help="JSON report of the tree before.")],
    right: Annotated[Path, typer.Argument(help="JSON report of the tree at hand, of the same artifact.")],
) -> None:
    """Compare two reports, figure by figure."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in (left, right)]
    found = list(differences(*reports))
    count = len(dict(_figures(reports[0])).keys() & dict(_figures(reports[1])).keys())
    for each in found:
        if each.verdict != "sums":
            print(f"{each.verdict:10} {each.path}: {each.left} | {each.right}")
    tally = {verdict: sum(each.verdict == verdict for each in found) for verdict in ("sums", "noise", "differs")}
    lost, added = (sum(each.verdict == f"{side} only" for each in found) for side in ("left", "right"))
    print(
        f"{count} figures on both sides: {count - sum(tally.values())} the same, {tally['sums']} but for the order of "
        f"sums, {tally['noise']} within the noise of rounding, {tally['differs']} different; "
        f"{lost} on the left side only, {added} on the right side only"
    )
    raise typer.Exit(1 if tally["differs"] or lost else 0)


if __name__ == "__main__":
    app()
