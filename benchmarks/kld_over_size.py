"""The results of `quality_beside_gguf` for people: who loses least at each size, every figure, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
AIM = 0.7  # of the GGUF's KLD: what ours shall lose at most, at no more bytes


class SizeClass(NamedTuple):
    """The best GGUF of one size, and the best of ours that is no larger."""

    theirs: Row
    ours: Row

    @property
    def ratio(self) -> float:
        """Return our KLD over theirs."""
        return float(self.ours["mean_kld"] / self.theirs["mean_kld"])


def size_classes(rows: Sequence[Row]) -> list[SizeClass]:
    """Return a class for each size of a GGUF that something of ours fits into, largest first."""
    ours, theirs = ([row for row in rows if ("gguf" in row) is peer] for peer in (False, True))
    found = []
    for size in sorted({row["bytes"] for row in theirs}, reverse=True):
        if fitting := [row for row in ours if row["bytes"] <= size]:
            best = min((row for row in theirs if row["bytes"] == size), key=lambda row: float(row["mean_kld"]))
            found.append(SizeClass(best, min(fitting, key=lambda row: float(row["mean_kld"]))))
    return found


def page(result: Row) -> str:
    """Return Markdown: the size classes, then every row."""
    rows: list[Row] = result["rows"]
    lines = [
        f"{result['checkpoint']}, {result['parameters'] / 1e6:.1f} M parameters: {rows[0]['tokens']} tokens of "
        f"{result['text']}, integers and importance matrices calibrated on {result['calibration_tokens']} others; "
        f"llama-cpp-python {result['llama_cpp']}. MB of all matrices, without norms and taps.",
        "",
        f"| at most MB | best GGUF of that size | its KLD | ours | MB | KLD | of the GGUF's (aim: {AIM}) |",
        "|---" * 7 + "|",
    ]
    for each in size_classes(rows):
        theirs, ours = each
        cells = [f"{theirs['bytes'] / 1e6:.3f}", _name(theirs), f"{theirs['mean_kld']:.2g}", _name(ours)]
        lines.append(_line([*cells, f"{ours['bytes'] / 1e6:.3f}", f"{ours['mean_kld']:.2g}", f"{each.ratio:.2f}"]))
    kinds = list(result["fp32_accuracy"] or ())
    headings = ["", "MB", "mean KLD ± s.e.", "median", "p99", "top-1", "clear flips", "perplexity", *kinds, "stored as"]
    lines += ["", _line(headings), "|---" * len(headings) + "|"]
    for row in sorted(rows, key=lambda row: (-int(row["bytes"]), float(row["mean_kld"]))):
        flips = "–" if row["clear_flips"] is None else f"{row['clear_flips']:.2%}"
        cells = [f"{row['bytes'] / 1e6:.3f}", f"{row['mean_kld']:.2g} ± {row['kld_standard_error']:.1g}"]
        cells += [f"{row['median_kld']:.2g}", f"{row['p99_kld']:.2g}", f"{row['top1']:.2%}", flips]
        cells += [f"× {row['perplexity_ratio']:.4f}", *(f"{row['accuracy'][kind]:.1%}" for kind in kinds)]
        lines.append(_line([_name(row), *cells, _types(row)]))
    return "\n".join(lines) + "\n"


def figure(result: Row) -> Figure:
    """Draw KLD over megabytes, both axes logarithmic: a point for each row."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kld over size"}):
        drawing = Figure(figsize=(8, 5), layout="constrained")
        axes = drawing.subplots()
        for label, marker, colour, rows in _series(result["rows"]):
            xs, ys = [row["bytes"] / 1e6 for row in rows], [row["mean_kld"] for row in rows]
            axes.plot(xs, ys, marker, color=colour, label=label, linestyle="none", alpha=0.8)
        for row in result["rows"]:
            if ("gguf" in row and row["weights"] == "llama.cpp") or row.get("gguf") == "IQ4_XS":
                at = row["bytes"] / 1e6, row["mean_kld"]
                axes.annotate(row["gguf"], at, (-7, -4), textcoords="offset points", ha="right")
        axes.set(xlabel="matrices, MB", ylabel="mean KLD from fp32, nats per token", xscale="log", yscale="log")
        ticks = sorted({round(row["bytes"] / 1e6, 2) for row in result["rows"] if "gguf" in row})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        axes.set_title(f"{result['checkpoint']}, {result['parameters'] / 1e6:.1f} M parameters")
        return drawing


def _series(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Row]]]:
    peers = [row for row in rows if "gguf" in row]
    ours = [row for row in rows if "gguf" not in row]
    return [
        ("llama.cpp", "x", "tab:red", [row for row in peers if row["weights"] == "llama.cpp"]),
        ("llama.cpp, importance matrix", "^", "tab:red", [row for row in peers if row["weights"] != "llama.cpp"]),
        ("ours, nearest", ".", "tab:blue", [row for row in ours if row["weights"] == "nearest"]),
        ("ours, awq-gptq", "o", "tab:blue", [row for row in ours if row["weights"] == "awq-gptq"]),
    ]


def _name(row: Row) -> str:
    return f"{row['gguf']}, {row['weights']}" if "gguf" in row else f"`{row['recipe']}` {row['weights']}"


def _types(row: Row) -> str:
    sizes = row.get("types", {})
    return ", ".join(f"{kind} {size / row['bytes']:.0%}" for kind, size in sizes.items()) or "–"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
