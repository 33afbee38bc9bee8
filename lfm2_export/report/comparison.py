"""The result of `compare`: what two artifacts or reports have, side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Row(BaseModel):
    """One thing that both sides have, or that one of them lacks (None)."""

    section: str
    name: str
    left: str | None
    right: str | None

    @property
    def differs(self) -> bool:
        return self.left != self.right


class Comparison(BaseModel):
    """The two sides and their rows, section by section."""

    generator: Literal["lfm2-export"] = "lfm2-export"  # first: what --force knows a report by
    left: str
    right: str
    rows: list[Row]

    @property
    def sections(self) -> list[tuple[str, list[Row]]]:
        names = dict.fromkeys(row.section for row in self.rows)
        return [(name, [row for row in self.rows if row.section == name]) for name in names]
