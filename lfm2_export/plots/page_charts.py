"""The report's charts: SVG that lies in the page itself and takes its colours from the page's style sheet.

Text stays text, so that it prints and can be searched. Equal input gives equal bytes: no date, no random ids.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lfm2_export.bench.report import Speed
from lfm2_export.parity.detail import Drift, LayerError, TokenDivergence

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

for _prefix, _uri in (("", "http://www.w3.org/2000/svg"), ("xlink", "http://www.w3.org/1999/xlink")):
    ET.register_namespace(_prefix, _uri)

# matplotlib knows no CSS: drawn in colours that nothing else has, then replaced by the page's own
_INK, _GRID, _SERIES = "#010203", "#040506", tuple(f"#0a0b0{number}" for number in range(1, 7))
_NAMES = {_INK: "currentColor", _GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
_MARKERS = "os^Dvx"  # beside the colour, for readers who print in grey
_LONGEST = 40  # characters of a name in a legend
_SMALLEST = 1e-9  # what a logarithmic axis shows of a zero
_BUCKETS = 40


def kld_histogram(found: TokenDivergence) -> str:
    """Draw how many tokens have which divergence, on a logarithmic axis."""
    values = np.maximum(np.array(found.kld), _SMALLEST)
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    figure, axes = _figure("KL divergence from fp32 (nats per token)", "tokens")
    axes.hist(values, bins=np.logspace(low, max(high, low + 1), _BUCKETS + 1).tolist(), color=_SERIES[0])
    axes.set_xscale("log")
    axes.axvline(float(values.mean()), color=_INK, linestyle="--", linewidth=1, label=f"mean {values.mean():.2g}")
    axes.axvline(
        float(np.quantile(values, 0.99)),
        color=_INK,
        linestyle=":",
        linewidth=1,
        label=f"99th percentile {np.quantile(values, 0.99):.2g}",
    )
    _legend(axes)
    return _svg(figure, "Histogram of the KL divergence per token")


def kld_by_position(found: TokenDivergence) -> str:
    """Draw the mean divergence by how many tokens came before: a state that decays would show as a slope."""
    position, kld = np.array(found.position), np.array(found.kld)
    edges = np.unique(np.linspace(1, position.max() + 1, min(_BUCKETS, position.max()) + 1).astype(int))
    bucket = np.digitize(position, edges[1:-1])
    used = [number for number in range(len(edges) - 1) if (bucket == number).any()]
    middle = [float(position[bucket == number].mean()) for number in used]
    figure, axes = _figure("tokens before it", "KL divergence (nats)")
    means = [max(float(kld[bucket == number].mean()), _SMALLEST) for number in used]
    worst = [max(float(kld[bucket == number].max()), _SMALLEST) for number in used]
    axes.plot(middle, means, color=_SERIES[0], marker="o", markersize=3, label="mean")
    axes.plot(middle, worst, color=_SERIES[1], linewidth=1, linestyle=":", label="largest")
    axes.set_yscale("log")
    _legend(axes)
    return _svg(figure, "KL divergence by position in the conversation")


def error_by_layer(layers: Sequence[LayerError]) -> str:
    """Draw two bars a layer: what lowering did to its state, and quantization to the residual stream."""
    figure, axes = _figure("layer", "RMS error, relative")
    lowering = [each.lowering for each in layers]
    quantization = [each.quantization for each in layers]
    places = np.arange(len(layers))
    for offset, values, label, colour in (
        (-0.2, lowering, "lowering: state, artifact from eager", _SERIES[0]),
        (0.2, quantization, "quantization: after the layer, eager from fp32", _SERIES[1]),
    ):
        if any(value is not None for value in values):
            heights = [max(value or 0.0, _SMALLEST) for value in values]
            axes.bar(places + offset, heights, width=0.4, color=colour, label=label)
    step = max(1, len(layers) // 12)
    axes.set_xticks(
        places[::step], [f"{each.layer}\n{'conv' if each.kind == 'conv' else 'attn'}" for each in layers[::step]]
    )
    axes.set_yscale("log")
    _legend(axes)
    return _svg(figure, "Error of each layer")


def state_drift(found: Drift) -> str:
    """Draw logits, conv states and new cache columns (each of its worst layer) along one long conversation."""
    figure, axes = _figure("decode steps", "RMS error, relative")
    steps = [sample.step for sample in found.samples]
    for name, label, colour in (
        ("logits", "logits", _SERIES[0]),
        ("conv", "conv states", _SERIES[1]),
        ("cache", "new keys, values", _SERIES[2]),
    ):
        values = [getattr(sample, name) for sample in found.samples]
        if all(value is not None for value in values):
            axes.plot(steps, [max(value, _SMALLEST) for value in values], color=colour, linewidth=1.3, label=label)
    axes.set_yscale("log")
    _legend(axes)
    return _svg(figure, "Drift of the state over a long conversation")


def speed(contenders: Sequence[tuple[str, Sequence[Speed]]], what: str, x: str) -> str:
    """Draw tokens per second by contexts or lengths, a line for each contender: medians, and bars from least to most.

    Some contender must have been measured somewhere.
    """
    figure, axes = _figure(x, "tokens per second")
    handles: list[Artist] = []
    labels, ticks = [], set()
    for number, (name, speeds) in enumerate(contenders):
        points = [(each.tokens, each.tokens_per_second) for each in speeds if each.tokens_per_second]
        if not points:
            continue
        medians = [spread.median for _, spread in points]
        reach = [[s.median - s.min for _, s in points], [s.max - s.median for _, s in points]]
        again, at = divmod(number, len(_SERIES))
        drawn = axes.errorbar(
            [tokens for tokens, _ in points],
            medians,
            yerr=reach,
            color=_SERIES[at],
            marker=_MARKERS[at],
            linestyle="--" if again else "-",
            markersize=4,
            linewidth=1.3,
            capsize=2,
        )
        handles.append(drawn.lines[0])
        labels.append("".join(letter for letter in " ".join(name.split()) if letter.isprintable())[:_LONGEST])
        ticks |= {tokens for tokens, _ in points}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _legend(axes, handles, labels)
    return _svg(figure, what)


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(which="both", color=_GRID, labelcolor=_INK)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_color(_GRID)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def _legend(axes: Axes, handles: Sequence[Artist] | None = None, labels: Sequence[str] = ()) -> None:
    """Above the drawing, so that it never covers a line; of what is labelled there, unless handles are given."""
    if handles is None:
        handles, labels = axes.get_legend_handles_labels()
    longest = len(max(labels, key=len))
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=1 if longest > 35 else 2 if longest > 16 else 3,
        frameon=False,
        labelcolor=_INK,
        fontsize="small",
        borderpad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold dollars


def _svg(figure: Figure, label: str) -> str:
    """The drawing as an element of a page, in the page's colours."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = file.getvalue()
    for drawn, shown in _NAMES.items():
        drawing = drawing.replace(drawn, shown)
    root = ET.fromstring(drawing)
    for element in root.iter():
        # matplotlib numbers the parts of each drawing from 1, and a page has several: only what is referred to is named
        name = element.get("id")
        if name is not None and f'"#{name}"' not in drawing and f"url(#{name})" not in drawing:
            del element.attrib["id"]
    root.attrib = {"class": "chart", "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    return ET.tostring(root, encoding="unicode")
