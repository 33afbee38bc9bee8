"""The Pareto front of `tune`: KLD over bytes, and the choice that was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfm2_export.tune.search import Tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(tuning: Tuning) -> Figure:
    """Draw the best choice of each size as a line, and the chosen one, measured whole, as a star."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.subplots()
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
    return drawing
