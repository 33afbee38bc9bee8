"""`python -m lfm2_export`: the command line, whoever else installed a script named `lfm2-export`."""

from lfm2_export.cli.main import run

if __name__ == "__main__":
    run()
