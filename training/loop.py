"""The training loop that every lesson goes through: optimizers, schedule, progress, and a pause now and then."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from cpuinfo import get_cpu_info
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import nn

Item = TypeVar("Item")
KEEP_EVERY = 300  # seconds
console = Console()


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embedding, norms, convolution taps and stacked experts."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: nn.Module,
    data: Iterator[Item],
    loss_of: Callable[[Item, int, float], torch.Tensor],
    steps: int,
    rate: float,
    pause: Callable[[str], None],
    keep: Callable[[], None],
    minutes: float = math.inf,
) -> None:
    """Trains in place for so many steps or minutes: short warm-up, then cosine decay to nearly nothing.

    `loss_of` takes an item of `data`, the step, and the share of the training that is done. After every tenth of it
    `pause` is called with what to report; `keep` then, and every five minutes.
    bfloat16 matrix products are twice as fast on CPUs that have them; weights and loss stay fp32.
    """
    optims = optimizers(model, rate)
    half = any("bf16" in flag for flag in get_cpu_info().get("flags", []))
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    loss_mean = 0.0
    begun = kept = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=1.0, note="")
        for step, item in enumerate(islice(data, steps)):
            done = max(step / steps, (time.monotonic() - begun) / (60 * minutes))
            if done >= 1.0:
                break
            warm, decay = min(1.0, (step + 1) / 50), 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
            for group in (group for optimizer in optims for group in optimizer.param_groups):
                group["lr"] = rate * warm * decay
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = loss_of(item, step, done)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optims:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            loss_mean += (loss.item() - loss_mean) * (0.02 if step else 1.0)
            progress.update(task, completed=done, note=f"step {step} loss {loss_mean:.3f}")
            if tenth := (step + 1) % max(1, steps // 10) == 0:
                pause(f"step {step} loss {loss_mean:.4f}")
            if tenth or time.monotonic() - kept > KEEP_EVERY:
                keep()
                kept = time.monotonic()


def report(what: str, scores: dict[str, float]) -> None:
    """Prints scores on one line, in percent."""
    listed = "  ".join(f"{kind} {100 * score:.1f}%" for kind, score in scores.items())
    console.print(f"{what}: {listed}", soft_wrap=True)
