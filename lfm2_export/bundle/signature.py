"""Signing a bundle and checking the signature, with the library model-signing and a key pair of the user's own.

What is signed is bundle.json, which holds the SHA-256 of every other file: one signature is good for the archive, for
its parts and for the unpacked folder. Keys are elliptic (P-256, P-384, P-521) in PEM files; no network is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lfm2_export.bundle.description import BUNDLE
from lfm2_export.errors import BundleError, MissingDependencyError, UsageError, one_line
from lfm2_export.files import marked, scratch_folder

SUFFIX = ".sig"
# in the library's own format, which has no place for a mark of ours
KIND = marked("bundle --sign", b"application/vnd.dev.sigstore.bundle", 100)
_MAX_SIGNATURE = 1 << 20


def sign(description: bytes, private_key: Path) -> bytes:
    """The signature of a bundle's bundle.json. UsageError for a key that the library cannot use."""
    signing = _library().signing
    with scratch_folder() as folder:
        (folder / BUNDLE).write_bytes(description)
        try:
            signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
            signer.sign(folder / BUNDLE, folder / "signature")
        except Exception as error:  # the library lets those of cryptography and others through
            raise UsageError(f"cannot sign with {private_key}: {one_line(error)}") from error
        return (folder / "signature").read_bytes()


def check(description: bytes, signature: Path, public_key: Path) -> None:
    """Raises BundleError unless the owner of the key signed exactly this bundle.json; UsageError for no usable key."""
    verifying = _library().verifying
    if not public_key.is_file():
        raise UsageError(f"{public_key}: no such key")
    if not signature.is_file():
        raise BundleError(f"{signature}: no signature; name it with --signature")
    if signature.stat().st_size > _MAX_SIGNATURE:
        raise BundleError(f"{signature}: larger than {_MAX_SIGNATURE} bytes, that is no signature")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise UsageError(f"{public_key}: not a public key: {one_line(error)}") from error
    with scratch_folder() as folder:
        (folder / BUNDLE).write_bytes(description)
        try:
            verifier.verify(folder / BUNDLE, signature)
        except Exception as error:
            raise BundleError(f"{signature}: the signature does not hold: {one_line(error)}") from error


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need model-signing ({error.name} is missing): pip install 'lfm2-export[sign]'"
        ) from error
    return model_signing
