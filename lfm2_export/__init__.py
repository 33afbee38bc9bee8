"""lfm2-export: from an LFM2 checkpoint to a quantized, proven artifact for ExecuTorch or onnxruntime.

from lfm2_export import export, prove, bundle, verify, open_artifact, save_state, load_state
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfm2_export.artifact.folder import open_artifact as open_artifact
    from lfm2_export.bundle.pack import bundle as bundle
    from lfm2_export.bundle.verify import verify as verify
    from lfm2_export.chat.saved_state import load_state as load_state
    from lfm2_export.chat.saved_state import save_state as save_state
    from lfm2_export.parity.prove import prove as prove
    from lfm2_export.pipeline import export as export

__version__ = "0.1.0"
__all__ = ["__version__", "bundle", "export", "load_state", "open_artifact", "prove", "save_state", "verify"]

_HOMES = {
    "export": "lfm2_export.pipeline",
    "prove": "lfm2_export.parity.prove",
    "verify": "lfm2_export.bundle.verify",
    "open_artifact": "lfm2_export.artifact.folder",
    "save_state": "lfm2_export.chat.saved_state",
    "load_state": "lfm2_export.chat.saved_state",
}


def __getattr__(name: str) -> Any:
    """Import the API on first use: `lfm2-export --help` must not wait for torch."""
    if name == "bundle":  # a package, and callable
        return importlib.import_module("lfm2_export.bundle")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
