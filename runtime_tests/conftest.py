"""Fixtures of the parity ladder."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    torch.manual_seed(0)
