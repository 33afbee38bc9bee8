"""`lfm2-export verify`: check a bundle or an artifact before an app or a CI trusts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lfm2_export.bundle.verify import Verification

NAME = "verify"
_TELLING = 50_000_000  # bytes: with fewer the speed is that of opening files


def run(
    bundle: Annotated[Path, typer.Argument(help="Archive, folder of parts, unpacked folder, or artifact folder.")],
    public_key: Annotated[Path | None, typer.Option(help="Also check who signed it: a public key (PEM).")] = None,
    signature: Annotated[Path | None, typer.Option(help="The signature. [BUNDLE.sig]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check every byte, path, size, version and contract, without torch. Exit code 1 if anything is wrong."""
    from lfm2_export.bundle.verify import verify
    from lfm2_export.cli import console
    from lfm2_export.errors import UsageError

    if signature is not None and public_key is None:
        raise UsageError("--signature needs the signer's --public-key")
    found = verify(bundle, public_key=public_key, signature=signature)
    if as_json:
        console.print_json(found.model_dump_json(indent=2))
        return
    for line in _lines(found):
        console.out.print(line, soft_wrap=True)


def _lines(found: Verification) -> list[str]:
    from lfm2_export.cli.console import megabytes

    took = f"{found.seconds:.2f} s"
    if found.bytes > _TELLING:
        took += f", {found.bytes / 1e9 / found.seconds:.2f} GB/s"
    kind = "artifact" if found.kind == "artifact" else f"{found.kind} bundle ({found.form})"
    weights = ", random weights" if found.random_weights else ""
    return [
        f"{found.path}: {kind} of {found.files} files, {megabytes(found.bytes)}, checked in {took}",
        f"model: {found.source}{weights}, {found.recipe}, {found.state} form, window {found.window}",
        f"the app must use {found.runtime_requirement}",
        f"golden cases: {found.golden_cases or 'none (an artifact has none)'}",
        f"licence: {', '.join(found.licences) or 'none came with the checkpoint'}",
        f"proof: {_proof(found)}",
        f"signature: {'holds' if found.signed else 'not checked (--public-key)'}",
        f"{'manifest.json' if found.kind == 'artifact' else 'bundle.json'}: sha256 {found.sha256}",
        "good",
    ]


def _proof(found: Verification) -> str:
    if found.unproven is not None:
        return f"not proven where it was exported ({found.unproven})"
    if not found.proven:
        return "not proven: exported with --no-verify"
    return "parity gates passed at export" + ("" if found.effort == "full" else f", {found.effort} effort")
