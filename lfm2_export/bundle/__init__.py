"""Packing an artifact for an app, and checking what was packed.

`from lfm2_export import bundle` gives this package, whichever of its modules was imported first; calling it packs.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`bundle.pack.bundle`, imported when it is needed."""
        from lfm2_export.bundle.pack import bundle

        return bundle(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
