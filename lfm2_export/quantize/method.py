"""How weights come to their integers: the names that a recipe's `weights` may have.

"nearest": the largest weight of a group sets its scale. "mse": the scale with the least squared error of the weights.
"awq": smoothing first (see `smoothing.py`), scales by error weighed with the inputs. "gptq": scales likewise, then the
integers that change the products least. "awq-gptq": both. "qat": the grid that torchao's fake quantization trained the
weights for, its largest integer and a half at the largest weight, so that nothing is lost a second time.
"""

from __future__ import annotations

from typing import Literal

Method = Literal["nearest", "mse", "gptq", "awq", "awq-gptq", "qat"]
CALIBRATED = ("gptq", "awq", "awq-gptq")  # these see the model's activations on calibration tokens
