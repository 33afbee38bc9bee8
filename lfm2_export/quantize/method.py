"""How weights come to their integers: the names that a recipe's `weights` may have."""

from __future__ import annotations

from typing import Literal

Method = Literal["nearest", "mse", "gptq", "awq", "awq-gptq"]
CALIBRATED = ("gptq", "awq", "awq-gptq")  # these see the model's activations on calibration tokens
