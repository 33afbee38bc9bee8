"""Ways to spoil a good bundle. Each must be refused in one line that says what is wrong.

`HOSTILE` maps a name to a function of the good files (see `small_bundles`) and an empty folder, which returns the path
to verify, and to a piece of text that the refusal must contain. Where a manifest or a golden case is forged, the
checksums are made anew: the forger can compute them too.
"""

from hostile_bundles import archive, contents, description, folder, manifest
from hostile_bundles.spoil import HOSTILE, spoiled

__all__ = ["HOSTILE", "archive", "contents", "description", "folder", "manifest", "spoiled"]
