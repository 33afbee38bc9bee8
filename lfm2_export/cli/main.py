"""The `lfm2-export` command: registers the commands and turns every error into one line and an exit code.

Exit codes: 0 done, 1 a check failed (parity gate, lowering, doctor), 2 misuse or bad input, 128 + N ended by signal N
(130 Ctrl-C, 143 SIGTERM, 129 SIGHUP). A traceback is shown only with `--debug`. Command modules import typer and
nothing heavy at the top, so `--help` is quick.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Annotated

import typer

from lfm2_export import __version__
from lfm2_export.cli import (
    bench,
    bundle,
    chat,
    compare,
    doctor,
    export,
    init,
    inspect,
    matrix,
    parity,
    recipes,
    run_on_device,
    score,
    tune,
    verify,
)
from lfm2_export.errors import Lfm2ExportError, one_line
from lfm2_export.files import failures, links
from lfm2_export.files.interrupts import Stopped, orderly_end

app = typer.Typer(
    name="lfm2-export",
    help="From an LFM2 checkpoint to a quantized, proven artifact for ExecuTorch or onnxruntime.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
_COMMANDS = (
    *(export, parity, matrix, compare, score, chat, bench, bundle, verify),
    *(inspect, run_on_device, recipes, tune, init, doctor),
)
for command in _COMMANDS:
    app.command(command.NAME)(command.run)


_LINKS = "--follow-links"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lfm2-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (accepted anywhere on the line).")] = False,
    follow_links: Annotated[
        bool, typer.Option(_LINKS, help="A checkpoint's files may be links to elsewhere (anywhere, too).")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    if not debug:
        _hush()
    if _LINKS in given:
        links.follow()
    given = [argument for argument in given if argument not in ("--debug", _LINKS)]
    as_json = "--json" in given
    try:
        with orderly_end():
            code = app(args=given, prog_name="lfm2-export", standalone_mode=debug)
    except Stopped as signal:
        code = _fail(f"stopped by {signal.name}", signal.status, as_json)
    except Lfm2ExportError as error:
        if debug:
            raise
        code = _fail(str(error), error.exit_code, as_json)
    except typer.Abort:
        code = _fail("interrupted", 130, False)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors, with their hints
            error.show()
            code = error.exit_code
        elif isinstance(error, OSError) and failures.is_known(error):
            code = _fail(f"{error.filename or 'the system'}: {failures.advice(error)}", 2, as_json)
        else:
            message = f"internal error: {type(error).__name__}: {one_line(error)} (--debug shows where)"
            code = _fail(message, 1, as_json)
    sys.exit(code or 0)


def _hush() -> None:
    """Libraries announce optional CUDA parts and future deprecations on import: nothing a user can act on."""
    warnings.simplefilter("ignore")
    for name in ("torchao", "torch.utils._pytree", "executorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message, "exit_code": code}))
    else:
        typer.secho("error: ", fg="red", err=True, nl=False)
        typer.echo(message, err=True)
    return code
