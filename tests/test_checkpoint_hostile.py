"""Checkpoints made to deceive or crash: each is refused in one line that names what is wrong; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_checkpoints import HOSTILE

from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import CheckpointError
from lfm2_export.model.load import load_decoder, open_checkpoint


def read_everything(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    checkpoint.companions()
    load_decoder(checkpoint)


def test_the_unspoiled_checkpoint_is_accepted(tiny_checkpoint: Path) -> None:
    read_everything(tiny_checkpoint)


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_in_one_line(
    name: str, tiny_checkpoint: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    says = HOSTILE[name](tiny_checkpoint)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        read_everything(tiny_checkpoint)
    line = str(refusal.value)
    assert line.isprintable()  # no newline, no terminal escape
    assert len(line.replace(str(tiny_checkpoint), "")) < 320
    assert line.startswith(str(tiny_checkpoint))
    assert says in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["weights_not_a_number", "weights_infinite", "tied_head_differs"])
def test_opening_reads_no_weight(name: str, tiny_checkpoint: Path) -> None:
    HOSTILE[name](tiny_checkpoint)
    assert open_checkpoint(str(tiny_checkpoint)).config.hidden_size == 16
