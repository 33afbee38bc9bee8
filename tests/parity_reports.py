"""A parity report as `prove` makes them, written by hand: every part of it filled, every name hostile if wanted."""

from __future__ import annotations

import random
from typing import Any

from lfm2_export.artifact.manifest import Delegation, GateResult
from lfm2_export.evaluate.metrics import quantization_loss
from lfm2_export.parity.detail import Details, Drift, DriftSample, LayerError, TokenDivergence
from lfm2_export.parity.report import ParityReport, RuntimeReport

HOSTILE = "<script>alert('x')</script>|`${`\n# [a](javascript:b) \x07 ]]> \"&amp;"


def details(layers: int = 6) -> Details:
    chooser = random.Random(1)
    return Details(
        tokens=TokenDivergence(
            kld=[chooser.lognormvariate(-7, 2) for _ in range(400)], position=[1 + number % 80 for number in range(400)]
        ),
        layers=[
            LayerError(layer=layer, kind="conv" if layer % 3 else "full_attention", lowering=1e-6, quantization=1e-2)
            for layer in range(layers)
        ],
        drift=Drift(
            asked=2000,
            steps=512,
            reason="the window holds 512 tokens",
            samples=[DriftSample(step=64 * n, logits=1e-3, conv=2e-3, cache=3e-3) for n in range(1, 9)],
        ),
    )


def a_report(name: str = "my-lfm2", **changes: Any) -> ParityReport:
    """One runtime that ran, with a failed and a skipped gate, and one that is not installed."""
    import numpy as np

    logits = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    gates = [
        GateResult(name="lowering: max error", runtime=name, status="pass", value=0.01, limit=0.06),
        GateResult(name="quality: mean KLD", runtime=name, status="fail", value=0.5, limit=0.02),
        GateResult(name=f"law: {name}", runtime=name, status="skipped", limit=0.06, reason=f"because {name}"),
    ]
    ran = RuntimeReport(
        runtime=name,
        status="fail",
        version=name,
        reference="eager",
        quality_of=name,
        quality=quantization_loss(logits, logits + 0.1, np.arange(20) % 8),
        task_accuracy={"all": 0.9, name: 1.0},
        gates=gates,
        details=details(),
    )
    values: dict[str, Any] = {
        "artifact": name,
        "recipe": name,
        "source": name,
        "weights_sha256": "0" * 64,
        "random_weights": False,
        "text": name,
        "reference_task_accuracy": {"all": 1.0},
        "delegation": [Delegation(backend=name, calls=4, delegated=268, fallback={name: 3, "aten.arange": 1})],
        "size_bytes": 1_234_567,
        "versions": {"torch": "2.13.0", name: name},
        "settings": {"name": name, "quantization": [{"match": name}]},
        "files": {name: 1_234_567},
        "quantization": {name: name},
        "reproduce": [f"echo {name}"],
        "runtimes": [ran, RuntimeReport(runtime="absent", reason=f"{name} is not installed")],
    }
    return ParityReport(**(values | changes))
