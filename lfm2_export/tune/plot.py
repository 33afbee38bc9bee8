"""The Pareto front as a picture: KLD over bytes, and the choice that was made."""

from __future__ import annotations

from pathlib import Path

from lfm2_export.errors import UsageError
from lfm2_export.tune.search import Tuning


def write(tuning: Tuning, path: Path) -> None:
    """Draw into a PNG or SVG, whole or not at all. UsageError when the disk refuses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [point.stored_bytes / 1e6 for point in tuning.front],
        [point.predicted_kld for point in tuning.front],
        "o-",
        label="best for its size (sum of the modules' costs)",
    )
    chosen = tuning.chosen
    axes.plot(chosen.stored_bytes / 1e6, tuning.measured_kld, "*", markersize=14, label="the choice, measured whole")
    axes.set(xlabel="weights, MB", ylabel="mean KLD, nats per token", yscale="log")
    axes.set_title(f"{tuning.checkpoint}, {tuning.target}, rounded to nearest")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=150)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
