"""The folder of a matrix: artifacts, their reports, and what became of each cell, by which a later run goes on.

index.html, matrix.json, matrix.md, junit.xml
artifacts/CELL/            as `export` makes it
reports/CELL.html, .json   as `export --report` writes them
cells/CELL.json            an `Outcome`, "begun" while it is worked on
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lfm2_export.artifact.folder import MANIFEST, open_artifact
from lfm2_export.errors import ArtifactError, UsageError
from lfm2_export.files import marked, sha256, write_text
from lfm2_export.matrix.outcome import Outcome
from lfm2_export.parity.report import ParityReport
from lfm2_export.report import outputs

_CELL = marked("matrix", b'{\n  "generator": "lfm2-export"')
_REPORTS = (".html", ".json")
_FOLDERS = ("artifacts", "reports", "cells")


@dataclass(frozen=True)
class Folder:
    """Where everything of one matrix lies."""

    path: Path

    def make(self) -> None:
        """Make the folders. Raises UsageError where the system refuses, or a file is in the way."""
        for name in _FOLDERS:
            try:
                (self.path / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{self.path / name}: cannot be made: {error.strerror}") from error

    def artifact(self, cell: str) -> Path:
        return self.path / "artifacts" / cell

    def read(self, cell: str) -> Outcome | None:
        """Return what became of a cell in an earlier run; None where there was none, or nothing that can be read."""
        try:
            return Outcome.model_validate_json(self._cell(cell).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, outcome: Outcome) -> None:
        """Keep what became of a cell, in place of what was there. Raises UsageError for a file of another's."""
        write_text(self._cell(outcome.cell), outcome.model_dump_json(indent=2) + "\n", True, _CELL)

    def stands(self, outcome: Outcome) -> bool:
        """Return whether the artifact of that outcome is there, whole, and the one it was, with its report."""
        artifact = self.artifact(outcome.cell)
        if outcome.report is None or not (self.path / outcome.report).is_file():
            return False
        try:
            open_artifact(artifact)
        except (ArtifactError, OSError):
            return False
        return sha256(artifact / MANIFEST) == outcome.manifest_sha256

    def write_report(self, cell: str, report: ParityReport) -> str:
        """Write a cell's report in every format. Return the page's path, relative to this folder."""
        paths = [self.path / "reports" / f"{cell}{suffix}" for suffix in _REPORTS]
        outputs.write(report, paths, force=True)
        return paths[0].relative_to(self.path).as_posix()

    @contextmanager
    def shared(self) -> Iterator[str]:
        """Mark the folder for the length of the block: a machine where `sees` the mark has the same folder."""
        mark = self.path / "cells" / f".{secrets.token_hex(8)}"
        mark.touch()
        try:
            yield mark.name
        finally:
            mark.unlink(missing_ok=True)

    def sees(self, mark: str) -> bool:
        return (self.path / "cells" / mark).is_file()

    def _cell(self, cell: str) -> Path:
        return self.path / "cells" / f"{cell}.json"
