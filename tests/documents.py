"""The documents as a reader has them before him: pages, and the blocks in them that can be pasted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("*_demo/*.md")])

# `sh` holds commands alone, `console` commands behind "$ " and what they print
SHELLS = ("sh", "console")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = "not run: "


@dataclass(frozen=True)
class Block:
    """A block of a page. The comment right above it, which readers do not see, says what a test does with it."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def why_not_run(self) -> str | None:
        """The reason of `<!-- not run: reason -->`."""
        return self.note.removeprefix(_NOT_RUN) if self.note.startswith(_NOT_RUN) else None

    @property
    def is_output(self) -> bool:
        """Whether it shows what the commands above it print: `<!-- printed -->`."""
        return self.note == "printed"

    @property
    def is_run(self) -> bool:
        return self.language in SHELLS and self.why_not_run is None

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each piece to paste, with the lines that are shown to be printed by it."""
        if self.language == "sh":
            return [(self.text, [])]
        first, *parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert first == "", f"{self.place}: a console block begins with '$ '"
        return [(command, printed.splitlines()) for command, _, printed in (part.partition("\n") for part in parts)]


def blocks(page: Path) -> Iterator[Block]:
    """Those of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["note"] or "", found["text"])


def words_of_commands(block: Block) -> list[str]:
    """The lines of a block that begin a command, joined where they end in a backslash, without comments."""
    lines = "".join(f"{command}\n" for command, _ in block.commands()).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]
