"""The command in a process that has torchvision (see `torchvision_apart`)."""

from __future__ import annotations

import sys

from torchvision_apart import declare_operators

if __name__ == "__main__":
    from lfm2_export.cli.main import run

    declare_operators()
    run(sys.argv[1:])
