"""fp32's reading beside other work: begun at once where there are two cores, given up when the other work fails."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from lfm2_export import recipes
from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.text import evaluation_text
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.beside import Beside
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.effort import effort_of
from lfm2_export.parity.fp32 import read_ahead
from lfm2_export.parity.prove import _reading

LAYERS = 6


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Reading:
    """Reads nothing, layer by layer; waits behind the first where told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.layers = 0
        self.threads: set[int] = set()

    def __call__(self, read: Callable[[], None]) -> list[Exact]:
        self.begun.set()
        for _ in range(LAYERS):
            assert self.go_on.wait(30)
            self.threads.add(torch.get_num_threads())
            self.layers += 1
            read()
        return []


def test_every_layer_is_told_of_and_the_threads_come_back(threads: int) -> None:
    reading, told = Reading(), []
    with Beside(reading) as beside:
        assert torch.get_num_threads() == 1  # the other core reads, or there is none
        assert reading.begun.wait(30 if threads > 1 else 0.1) == (threads > 1)
        reading.go_on.set()
        assert beside.result(lambda: told.append(1)) == []
    assert len(told) == LAYERS
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_other_work_that_fails_ends_the_reading_after_its_layer(threads: int) -> None:
    reading = Reading()

    def fail() -> None:
        with Beside(reading):
            assert reading.begun.wait(30)
            threading.Timer(0.2, reading.go_on.set).start()
            raise ValueError("the other work")

    with pytest.raises(ValueError, match="the other work"):
        fail()
    assert reading.layers == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_what_the_reading_raises_reaches_who_waits(threads: int) -> None:
    def read(_: Callable[[], None]) -> list[Exact]:
        raise OSError("a weight is not a number")

    with Beside(read) as beside, pytest.raises(OSError, match="not a number"):
        beside.result(lambda: None)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_reading_that_has_ended_gives_its_core_back_and_python_its_turns(threads: int) -> None:
    turn, reading = sys.getswitchinterval(), Reading()
    with Beside(reading) as beside:
        assert sys.getswitchinterval() < turn
        beside.reclaim()
        assert torch.get_num_threads() == 1  # it goes on
        reading.go_on.set()
        for _ in range(300):
            beside.reclaim()
            if torch.get_num_threads() == threads:
                break
            time.sleep(0.1)
        assert (torch.get_num_threads(), sys.getswitchinterval()) == (threads, turn)
        assert beside.result(lambda: None) == []


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_reading_that_is_not_wanted_ends_after_its_layer(threads: int) -> None:
    reading = Reading()
    with Beside(reading) as beside:
        assert reading.begun.wait(30)
        threading.Timer(0.2, reading.go_on.set).start()
        beside.abandon()
        assert reading.layers == 1
        assert torch.get_num_threads() == threads


def test_a_proof_takes_what_its_export_began_to_read_and_nothing_else() -> None:
    checkpoint, recipe = open_checkpoint("nano"), recipes.load("xnnpack-int8")
    text = evaluation_text(checkpoint.config, None, recipe.window, effort_of("quick", ()).quality_tokens)
    wanted = SimpleNamespace(checkpoint=checkpoint, recipe=recipe, text=text, detail=None, device="cpu")
    ahead = read_ahead(checkpoint, recipe, None, "quick", in_detail=False)
    with _reading(wanted, ahead) as reading:
        assert reading is ahead
    for other in (
        {"detail": Detail()},
        {"device": "cuda"},
        {"recipe": recipes.load("xnnpack-int8", ["cache=float16"])},
    ):
        with _reading(SimpleNamespace(**vars(wanted) | other), ahead) as reading:
            assert reading is not ahead
