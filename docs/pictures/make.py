"""The pictures of README and docs: boxes and arrows, a terminal with what the demo really prints, what nano-vl sees.

usage: python docs/pictures/make.py          needs what `lfm2-export` needs; the same drawing, the same bytes
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.scenes import Scene, Thing

HERE = Path(__file__).parent
COLUMNS = 100
DEMO = (
    ("export", "nano", "--recipe", "xnnpack-int8", "--output", "out/phone"),
    ("chat", "out/phone", "--prompt", "What color is the sky?"),
)

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 164, 62, 34, 34, 8
_STYLE = """\
  rect { fill: #fff; stroke: #3b5b8c; rx: 6px }
  rect.proof { fill: #e9f5ec; stroke: #2e7d4f; stroke-width: 2px }
  path { fill: none; stroke: #6b7685; stroke-width: 1.3px; marker-end: url(#tip) }
  #tip path { fill: #6b7685; stroke: none; marker-end: none }
  text { font: 12px system-ui, sans-serif; fill: #4a525c; text-anchor: middle }
  text.name { font-size: 14px; font-weight: 600; fill: #1c2024 }
  @media (prefers-color-scheme: dark) {
    rect { fill: #1d2430; stroke: #7f9fd0 }
    rect.proof { fill: #1b2f24; stroke: #6fbf8b }
    path { stroke: #9aa5b1 }
    #tip path { fill: #9aa5b1 }
    text { fill: #b6bec8 }
    text.name { fill: #eef1f4 }
  }"""


@dataclass(frozen=True)
class Box:
    """A thing at a column and row, which may be fractions, with two lines below its name."""

    column: float
    row: float
    name: str
    first: str
    second: str = ""
    kind: str = "thing"

    @property
    def left(self) -> float:
        return _MARGIN + self.column * (_WIDTH + _ACROSS)

    @property
    def top(self) -> float:
        return _MARGIN + self.row * (_HEIGHT + _DOWN)

    def drawn(self) -> str:
        middle = self.left + _WIDTH / 2
        lines = [
            f'<rect class="{self.kind}" x="{self.left:g}" y="{self.top:g}" width="{_WIDTH}" height="{_HEIGHT}"/>',
            f'<text class="name" x="{middle:g}" y="{self.top + 20:g}">{escape(self.name)}</text>',
        ]
        for text, down in ((self.first, 37), (self.second, 52)):
            lines += [f'<text x="{middle:g}" y="{self.top + down:g}">{escape(text)}</text>'] if text else []
        return "\n".join(lines)


def arrow(start: Box, end: Box) -> str:
    """From the side of a box that looks towards the other one; round a corner where others stand between."""
    if end.column > start.column + 1 and end.row < start.row - 1:
        x, y = start.left + _WIDTH, start.top + _HEIGHT / 2
        to_x, to_y = end.left + _WIDTH / 2, end.top + _HEIGHT
        return f'<path d="M{x:g} {y:g} L{to_x - 20:g} {y:g} Q{to_x:g} {y:g} {to_x:g} {y - 20:g} L{to_x:g} {to_y:g}"/>'
    if end.column > start.column + 0.5:
        x, y, to_x, to_y = start.left + _WIDTH, start.top + _HEIGHT / 2, end.left, end.top + _HEIGHT / 2
        bend = (x + to_x) / 2
        return f'<path d="M{x:g} {y:g} C{bend:g} {y:g} {bend:g} {to_y:g} {to_x:g} {to_y:g}"/>'
    if end.column < start.column - 0.5:
        return (
            f'<path d="M{start.left:g} {start.top + _HEIGHT / 2:g} L{end.left + _WIDTH:g} {end.top + _HEIGHT / 2:g}"/>'
        )
    down = end.row > start.row
    x, y = start.left + _WIDTH / 2, start.top + (_HEIGHT if down else 0)
    to_x, to_y = end.left + _WIDTH / 2, end.top + (0 if down else _HEIGHT)
    bend = (y + to_y) / 2
    return f'<path d="M{x:g} {y:g} C{x:g} {bend:g} {to_x:g} {bend:g} {to_x:g} {to_y:g}"/>'


def drawing(boxes: dict[str, Box], arrows: list[tuple[str, str]], title: str) -> str:
    """Return an SVG that follows the reader's light or dark scheme."""
    width = max(box.left for box in boxes.values()) + _WIDTH + _MARGIN
    height = max(box.top for box in boxes.values()) + _HEIGHT + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker>',
        *(arrow(boxes[start], boxes[end]) for start, end in arrows),
        *(box.drawn() for box in boxes.values()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def pipeline() -> str:
    """From a checkpoint to what an app ships: README's drawing."""
    boxes = {
        "checkpoint": Box(0, 0.5, "checkpoint", "LFM2, LFM3, your", "fine-tune, a LoRA"),
        "integers": Box(1, 0.5, "integers", "8 and 4 bits by a recipe,", "GPTQ, AWQ, or none"),
        "pte": Box(2, 0, ".pte", "ExecuTorch: CPUs, Core", "ML, Qualcomm's NPU"),
        "onnx": Box(2, 1, "ONNX", "onnxruntime, browsers,", "GPUs, NPU"),
        "runtime": Box(3, 0.5, "the app's runtime", "answers, step by step,", "with all of its state"),
        "eager": Box(2, 2, "eager PyTorch", "the same integers,", "and fp32"),
        "proof": Box(4, 0.5, "proof", "nothing broken, the laws", "of state, what it cost", "proof"),
        "app": Box(5, 0.5, "artifact, bundle", "Android, iOS, web,", "desktop, server"),
    }
    arrows = [
        ("checkpoint", "integers"),
        ("integers", "pte"),
        ("integers", "onnx"),
        ("pte", "runtime"),
        ("onnx", "runtime"),
    ]
    arrows += [("integers", "eager"), ("runtime", "proof"), ("eager", "proof"), ("proof", "app")]
    return drawing(boxes, arrows, "From a checkpoint to a proven artifact")


def architecture() -> str:
    """The packages, and what flows from one to the next: docs/architecture.md's drawing."""
    boxes = {
        "checkpoint": Box(0, 0.5, "checkpoint/", "config, safetensors,", "tokenizer: distrusted"),
        "model": Box(1, 0.5, "model/", "the network,", "written once"),
        "graph": Box(2, 0, "graph/", "a flat list of steps;", "passes; cuts"),
        "quantize": Box(2, 1, "quantize/", "integers for", "each matrix"),
        "targets": Box(3, 0.5, "targets/<name>/", "a table: step → how", "it is written here"),
        "artifact": Box(3, 2, "artifact/", "model file +", "manifest.json"),
        "runtimes": Box(2, 2, "runtimes/", "one Session protocol", "for all"),
        "parity": Box(1, 2, "parity/", "artifact against eager:", "gates, laws", "proof"),
        "bundle": Box(0, 2, "bundle/", "what an app", "ships"),
    }
    arrows = [
        ("checkpoint", "model"),
        ("model", "graph"),
        ("model", "quantize"),
        ("graph", "quantize"),
        ("graph", "targets"),
    ]
    arrows += [("quantize", "targets"), ("targets", "artifact"), ("artifact", "runtimes"), ("runtimes", "parity")]
    arrows += [("model", "parity"), ("parity", "bundle")]
    return drawing(boxes, arrows, "How the packages hang together")


# what docs/vision.md asks nano-vl about
SHAPES = Scene(2, 3, (Thing("star", "red", 0), Thing("circle", "blue", 4), Thing("ring", "green", 2)), seed=1)
DRAWINGS = {"pipeline.svg": pipeline, "architecture.svg": architecture}


def terminal() -> str:
    """The demo's commands and all that they print, in a drawn terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for words in DEMO:
            shown = " ".join(f'"{word}"' if " " in word else word for word in words)
            console.print(Text.assemble(("$ ", "bold green"), f"lfm2-export {shown}"))
            quiet = ["--quiet"] if words[0] == "export" else []  # no progress, which goes away on a terminal
            command = [sys.executable, "-m", "lfm2_export", *words, *quiet]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                check=True,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            console.print(Text.from_ansi(done.stdout.rstrip()), soft_wrap=True)
    # the fonts of rich's own template are fetched from elsewhere
    svg = console.export_svg(title="lfm2-export", theme=DIMMED_MONOKAI, unique_id="demo")
    start, end = svg.index("    @font-face"), svg.index("    .demo-matrix")
    return svg[:start] + svg[end:].replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


if __name__ == "__main__":
    for name, drawn in DRAWINGS.items():
        (HERE / name).write_text(drawn(), encoding="utf-8")
    draw(SHAPES).save(HERE / "shapes.png")
    (HERE / "demo.svg").write_text(terminal(), encoding="utf-8")
