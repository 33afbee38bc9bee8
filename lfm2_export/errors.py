"""Every error a user can cause, as one line that says what was wrong and what to do.

The command line prints the message and leaves with `exit_code`; a traceback appears only with
`--debug`. Anything else that escapes is a bug in this project.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

UNPROVEN = 3  # exit code: made and checked, but the runtime that would prove it does not run on this machine


class Lfm2ExportError(Exception):
    """Base of all expected errors. The message is one line; `exit_code` is the process's status."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Messages quote names out of files that nobody trusts: no line breaks, no codes for the terminal."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class UsageError(Lfm2ExportError):
    """A wrong option, an output that exists already, a missing path."""


class CheckpointError(Lfm2ExportError):
    """A checkpoint (config, weights, tokenizer, template) that cannot be trusted or understood."""


class RecipeError(Lfm2ExportError):
    """A recipe that is malformed, unknown, or impossible for this checkpoint."""


class PlanError(Lfm2ExportError):
    """A plan of `matrix` that is malformed, or that names what does not exist."""


class ArtifactError(Lfm2ExportError):
    """An artifact folder whose manifest, files or checksums do not hold together."""


class ImageError(Lfm2ExportError):
    """A picture that cannot be read, or that a model's processor cannot take."""


class StateFileError(Lfm2ExportError):
    """A saved state that is damaged, forged, or of another artifact or window."""


class MissingDependencyError(Lfm2ExportError):
    """An optional library that is not installed; the message names the command that installs it."""


class BundleError(Lfm2ExportError):
    """A bundle or artifact that did not pass `verify`: an app must not load it."""

    exit_code = 1


class DeviceError(Lfm2ExportError):
    """A phone that cannot be reached, or that did not do what it was asked."""


class WindowExceededError(Lfm2ExportError):
    """More tokens than the artifact's window holds."""


class LoweringError(Lfm2ExportError):
    """A lowering that did not do what the recipe demands (an operator fell off its delegate, say)."""

    exit_code = 1


class GateError(Lfm2ExportError):
    """A parity gate that failed: the artifact must not be shipped."""

    exit_code = 1


def nearest(given: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the one of `known` that `given` is nearest to, or nothing if none is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def one_line(error: object, limit: int = 200) -> str:
    """Return an error's message as one line of at most `limit` characters, or its type's name if it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def field_error(error: ValidationError, limit: int = 200) -> str:
    """Return the first thing that pydantic found wrong as `key.path: message`, each cut to `limit` characters."""
    first = error.errors()[0]
    key, message = ".".join(str(part) for part in first["loc"]), first["msg"].lower()
    return f"{key[:limit]}: {message[:limit]}" if key else message[:limit]
