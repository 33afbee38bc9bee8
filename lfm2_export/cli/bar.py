"""What shows on a terminal while work goes on: what is being done, and a bar once the extent of the work is known."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display
from rich.text import Text

from lfm2_export.progress import Progress

_SETTLED = 0.02  # share of the work from which its speed says how long the rest will take


class Bar(Progress):
    """A line on a console that goes when the block ends. What was announced is done when the next thing begins."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Share(), _Left())
        self._display = Display(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._display.add_task("starting", total=None)
        self._done = self._part = self._within = 0.0  # finished parts, the part under way, what is done of it

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def __call__(self, message: str, work: float = 0.0) -> None:
        self._done += self._part
        self._part, self._within = work, 0.0
        self._display.update(self._task, description=message, completed=self._done)

    def expect(self, work: float) -> None:
        self._done = self._part = self._within = 0.0
        self._display.update(self._task, total=work, completed=0.0, begun=time.monotonic())

    def advance(self, work: float) -> None:
        self._within = min(self._within + work, self._part)
        self._display.update(self._task, completed=self._done + self._within)


class _Share(ProgressColumn):
    """A bar of how far all of the work is; nothing before its extent is known."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=24)

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._bar.render(task)


class _Left(ProgressColumn):
    """About how long the rest takes, at the speed so far."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is None or task.completed < _SETTLED * task.total:
            return Text()
        left = (time.monotonic() - task.fields["begun"]) * (task.total - task.completed) / task.completed
        return Text(f"{task.percentage:.0f} %, about {left:.0f} s left", style="dim")
