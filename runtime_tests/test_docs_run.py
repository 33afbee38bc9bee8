"""What can be pasted from README and docs is pasted, page after page, and prints what is shown there.

A page is one bash, in a folder of its own. README comes first, in an empty folder; every other page begins where README
ended, with what GIVEN says in place of a reader's own files. Nothing in a block is changed but what SUBSTITUTED says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import javascript
import pytest
from documents import PAGES, ROOT, Block, blocks
from forked_command import serving
from runner_program import need_runner

from lfm2_export.checkpoint import nano

pytestmark = pytest.mark.slow

README = ROOT / "README.md"

# a reader's own files, and what stands for them here
GIVEN = {
    "my-lfm2": nano.PATH,
    "out/my-lfm2": "out/phone",
    "out/my-lfm2-xnnpack-int8": "out/phone",
    "out/my-lfm2-onnx-int4": "out/web",
    "out/my-lfm2-onnx-int8": "out/server",
    ".venv": ROOT / ".venv",  # where `make runner` builds
}
# what a command is given beside what is written, since a test has no network
SUBSTITUTED = {
    r"--for web\b": f"--for web --node-modules {javascript.NODE_MODULES}",
}
# what no two runs print alike
VARIES = (
    r"\d+(?= tok/s)",
    r"(?<=checked in )[\d.]+(?= s)",
    r"\b[0-9a-f]{64}\b",
)
PROGRESS = re.compile(r"\[ *[\d.]+ s\] ")  # a line for each stage; on a terminal they are one bar
LEFT_OUT = "…"
PAGES_TO_RUN = [page for page in PAGES if page != README and any(block.is_run for block in blocks(page))]


@dataclass(frozen=True)
class Run:
    """What a page's bash printed, piece by piece: by block, for each of its commands the lines."""

    printed: dict[Block, list[list[str]]]

    def all_of(self, block: Block) -> list[str]:
        return [line for lines in self.printed[block] for line in lines]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("programs")) as folder:
        yield folder


@pytest.fixture(scope="module")
def after_readme(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """README's commands, run in order: the folder they leave, and what they printed."""
    javascript.need()
    folder = tmp_path_factory.mktemp("readme")
    return folder, run(README, folder, programs)


def test_the_readmes_commands_print_what_it_shows(after_readme: tuple[Path, Run]):
    check(README, after_readme[1])


@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=lambda page: page.name)
def test_a_pages_commands_print_what_it_shows(
    page: Path, after_readme: tuple[Path, Run], programs: Path, tmp_path: Path
):
    if page.name == "native.md":
        need_runner()
    # linked: commands write beside what is there and rename
    shutil.copytree(after_readme[0], tmp_path, copy_function=os.link, dirs_exist_ok=True)
    for name, stands in GIVEN.items():
        original = stands if isinstance(stands, Path) else tmp_path / stands
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name == ".venv":
            (tmp_path / name).symlink_to(original)
        else:
            shutil.copytree(original, tmp_path / name, copy_function=shutil.copy if original == stands else os.link)
    check(page, run(page, tmp_path, programs))


def test_the_picture_of_the_demo_is_what_the_readme_prints(after_readme: tuple[Path, Run]):
    """`make pictures` draws it anew."""
    block = next(block for block in blocks(README) if block.is_run)
    expected = [line for line in after_readme[1].all_of(block) if not PROGRESS.match(line)]
    shown = [line for line in terminal_lines(ROOT / "docs/pictures/demo.svg") if line and not line.startswith("$ ")]
    assert list(map(without_digits, shown)) == list(map(without_digits, expected[: len(shown)]))


def test_a_wrong_line_is_seen():
    assert shown_in(["a", LEFT_OUT, "d"], ["a", "b", "c", "d"])
    assert shown_in(["12 tok/s"], ["815 tok/s"])
    assert not shown_in(["a", "d"], ["a", "b", "c", "d"])
    assert not shown_in(["a", LEFT_OUT, "e"], ["a", "b", "c", "d"])
    assert not shown_in(["3 files"], ["4 files"])


def run(page: Path, folder: Path, programs: Path) -> Run:
    """Paste a page's blocks into one bash, which ends at the first command that fails."""
    pasted = [block for block in blocks(page) if block.is_run]
    script = ["set -eo pipefail"]
    for number, block in enumerate(pasted):
        for part, (command, _) in enumerate(block.commands()):
            for pattern, replacement in SUBSTITUTED.items():
                command = re.sub(pattern, replacement, command)
            script.append(f"echo '@@@ {number} {part}'\n{command}")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
        "LFM2_EXPORT_CACHE": str(folder / ".cache"),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder, env=environment, text=True, check=False, timeout=600,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name}: exit code {done.returncode} after\n{done.stdout[-3000:]}"
    printed: dict[Block, list[list[str]]] = {block: [] for block in pasted}
    for piece in done.stdout.split("@@@ ")[1:]:
        place, *lines = piece.splitlines()
        printed[pasted[int(place.split()[0])]].append(lines)
    return Run(printed)


def check(page: Path, found: Run) -> None:
    """Each shown output against what was printed: that of a console's commands, and of the block above."""
    above: Block | None = None
    for block in blocks(page):
        if block.is_output:
            assert above is not None
            assert_shown(block.text.splitlines(), found.all_of(above), block)
        elif block.is_run:
            above = block
            for (_, shown), printed in zip(block.commands(), found.printed[block], strict=True):
                if shown:
                    assert_shown(shown, printed, block)


def assert_shown(shown: list[str], printed: list[str], block: Block) -> None:
    printed = [line for line in printed if not PROGRESS.match(line)]
    assert shown_in(shown, printed), (
        f"{block.place} shows\n" + "\n".join(shown) + "\nprinted was\n" + "\n".join(printed)
    )


def shown_in(shown: list[str], printed: list[str]) -> bool:
    """Whether the lines are those shown, but for what varies and what is left out at a line `…`."""
    pattern = "".join(r"(?:.*\n)*?" if line == LEFT_OUT else re.escape(constant(line)) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(constant(line) + "\n" for line in printed)) is not None


def constant(line: str) -> str:
    for pattern in VARIES:
        line = re.sub(pattern, "#", line)
    return line.rstrip()


def without_digits(line: str) -> str:
    """The words of a line whose figures may differ, and with them the width of its columns."""
    return re.sub(r"\d[\d.e+-]*|[─━═\s]+", "", line)


def terminal_lines(picture: Path) -> list[str]:
    """The text of a drawn terminal, line by line."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        if element.get("clip-path"):
            text = (element.text or "").replace("\xa0", " ")
            lines.setdefault(float(element.get("y", 0)), []).append((float(element.get("x", 0)), text))
    return ["".join(text for _, text in sorted(parts)).rstrip() for _, parts in sorted(lines.items())]
