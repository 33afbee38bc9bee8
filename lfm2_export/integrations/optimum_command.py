"""`optimum-cli export lfm2`: the same export, under optimum's roof.

The wheel installs this file as `optimum/commands/register/lfm2_export.py`, where optimum looks for such commands.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class Lfm2ExportCommand(BaseOptimumCLICommand):
    """Parses what `lfm2-export export` takes and runs it."""

    COMMAND = CommandInfo(name="lfm2", help="Export LFM2 to a proven ExecuTorch or ONNX artifact (lfm2-export).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", default="nano", help="Checkpoint folder, hub id, nano, nano-lfm3 or -moe.")
        parser.add_argument("-r", "--recipe", default="xnnpack-int8", help="Recipe name or path.")
        parser.add_argument("--revision", help="Branch, tag or commit of a hub checkpoint.")
        parser.add_argument(
            "--form", choices=("explicit", "resident"), help="State in the graph's inputs or in buffers."
        )
        parser.add_argument("--window", type=int, help="Tokens of KV cache.")
        parser.add_argument("--set", dest="overrides", action="append", default=[], help="key.path=value")
        parser.add_argument("--force", action="store_true", help="Replace what this command made there before.")
        parser.add_argument("output", type=Path, help="Folder to make.")

    def run(self) -> None:
        from lfm2_export.cli.main import run

        run(arguments(self.args))


def arguments(given: Namespace) -> list[str]:
    """The `lfm2-export` command line that says the same."""
    line = ["export", given.model, "--recipe", given.recipe, "--output", str(given.output)]
    for name in ("revision", "form", "window"):
        if (value := getattr(given, name)) is not None:
            line += [f"--{name}", str(value)]
    for override in given.overrides:
        line += ["--set", override]
    return line + (["--force"] if given.force else [])


REGISTER_COMMANDS = [(Lfm2ExportCommand, ExportCommand)]
