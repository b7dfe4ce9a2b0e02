"""The training loop of all submodels: AdamW, a cosine schedule, averaged weights and resumable state."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sonic.storage.files import replace_file


@dataclass(frozen=True)
class TrainingOptions:
    """How one submodel is trained.

    Attributes:
        steps: total number of optimizer steps.
        learning_rate: the peak, reached after `warm_up_steps`.
        final_learning_rate: at the end of the cosine schedule.
        warm_up_steps: steps of linear warm-up.
        weight_decay: AdamW's, for weights with at least two axes.
        gradient_clip: maximum norm of the gradient.
        average_decay: of the exponential moving average of the weights, which is the result.
        save_every_steps: steps between two saves of the state.
        bfloat16: whether the loss is computed under bfloat16 autocast.
    """

    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float = 3e-5
    warm_up_steps: int = 100
    weight_decay: float = 1e-3
    gradient_clip: float = 1.0
    average_decay: float = 0.998
    save_every_steps: int = 200
    bfloat16: bool = False  # PyTorch 2.13 aborts in the backward pass of some convolutions on CPUs with AMX


def train(
    name: str,
    module: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    folder: Path,
    options: TrainingOptions,
) -> nn.Module:
    """Train `module` in place; at the end it has the averaged weights.

    An interrupted run resumes from its last saved step; a finished one only loads its result. All
    randomness in `loss` should come from generators seeded by the step, so that the data do not depend on
    where a run was interrupted.

    Args:
        name: of the files `<name>.state.pt` and `<name>.log.jsonl` in `folder`.
        module: trained on the device of its parameters.
        loss: called with the step; its value "loss" is minimised, and all of its values are logged.
        folder: where state and log are kept.
        options: the schedule.

    Returns:
        `module`, in evaluation mode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path = folder / f"{name}.state.pt", folder / f"{name}.log.jsonl"
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        _parameter_groups(module, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.99)
    )
    average = [p.detach().clone() for p in parameters]
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=parameters[0].device)
        module.load_state_dict(state["module"])
        first = state["step"]
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
            average = state["average"]
        else:  # packed: only the averaged weights
            average = [p.detach().clone() for p in parameters]
    module.train()
    device_type = parameters[0].device.type
    logged: dict[str, list[float]] = {}
    started = time.monotonic()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast(device_type, torch.bfloat16, enabled=options.bfloat16):
            values = loss(step)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.gradient_clip)
        optimizer.step()
        decay = min(options.average_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        for key, value in values.items():
            logged.setdefault(key, []).append(float(value.detach()))
        if (step + 1) % options.save_every_steps == 0 or step + 1 == options.steps:
            means = {key: round(sum(values) / len(values), 6) for key, values in logged.items()}
            seconds = round((time.monotonic() - started) / len(logged["loss"]), 3)
            with open(log_path, "a") as log:
                log.write(json.dumps({"step": step + 1, **means, "seconds_per_step": seconds}) + "\n")
            print(f"{name}: step {step + 1} of {options.steps}, {means}, {seconds} s per step", flush=True)
            save_atomically(
                {"module": module.state_dict(), "optimizer": optimizer.state_dict(),
                 "average": average, "names": names, "step": step + 1},
                state_path,
            )  # fmt: skip
            logged, started = {}, time.monotonic()
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), average)  # type: ignore[arg-type]
    return module.eval()


def pack(source: Path, target: Path) -> None:
    """Copy the saved state of every submodel without the optimizer's state, with weights in float16.

    A finished submodel stays the same up to the precision of the checkpoint; an unfinished one resumes
    from its averaged weights with a fresh optimizer.

    Args:
        source: folder with `<name>.state.pt` files of `train`.
        target: folder for the smaller copies.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.state.pt")):
        state = torch.load(path, weights_only=True, map_location="cpu")
        module = dict(state["module"])
        if "average" in state:
            module |= dict(zip(state["names"], state["average"], strict=True))
        packed = {name: v.half() if v.is_floating_point() else v for name, v in module.items()}
        save_atomically({"module": packed, "step": state["step"]}, target / path.name)


def learning_rate(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, then a half cosine down to the final rate (Loshchilov and Hutter, 2017)."""
    if step < options.warm_up_steps:
        return options.learning_rate * (step + 1) / options.warm_up_steps
    done = (step - options.warm_up_steps) / max(options.steps - options.warm_up_steps, 1)
    span = options.learning_rate - options.final_learning_rate
    return options.final_learning_rate + 0.5 * span * (1 + math.cos(math.pi * done))


def save_atomically(values: object, path: Path) -> None:
    """`torch.save` to a file that is replaced atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    replace_file(path, lambda partial: torch.save(values, partial))


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: no weight decay for norms and biases."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    other = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
