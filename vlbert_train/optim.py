"""AdamW, its learning rate and its safe step. Promise: a step is taken whole or not at all, without asking the device.

The learning rate is a pure function of the step. Clipping and the refusal of non-finite gradients ride inside the fused
kernel, so that a GPU is never waited for.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vlbert_data.errors import VlbError
from vlbert_train.config import OptimConfig

MEAN, MEAN_SQUARE, COUNT = "mean.", "mean_square.", "num_updates"


def learning_rate(step: int, optim: OptimConfig, num_steps: int) -> float:
    """Return the learning rate of step `step`, counted from 0, of a run of `num_steps`.

    It rises linearly over the warm-up and is peak_lr at its last step; then it falls linearly and would be 0 at step
    decay_steps (num_steps, if that is none). So no step of the run has rate 0, neither the first nor the last.
    Source: the triangle of VL-BERT's released code, moved by one step.
    """
    if step < optim.warmup_steps:
        return optim.peak_lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.peak_lr
    end = num_steps if optim.decay_steps is None else optim.decay_steps
    return optim.peak_lr * max(0.0, (end - step) / max(1, end - optim.warmup_steps))


def make_adamw(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """Return a fused AdamW that decays every parameter, as VL-BERT does.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    return torch.optim.AdamW(
        list(parameters),
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def safe_step(adamw: torch.optim.AdamW, *, lr: float, norm: Tensor, clip_norm: float | None, refused: Tensor) -> None:
    """Take one step, or none where `refused` f32 [] on the parameters' device is 1.

    norm: f32 [], the global norm of the gradient; gradients are divided by norm / clip_norm where that exceeds 1.
    Nothing here waits for the device: the fused kernel reads both numbers where they are (`grad_scale` and `found_inf`
    are how torch.amp.GradScaler tells it).
    """
    scale = None if clip_norm is None else (norm / clip_norm).clamp(min=1.0)
    vars(adamw).update(grad_scale=scale, found_inf=refused)
    for group in adamw.param_groups:
        group["lr"] = lr
    adamw.step()


def adamw_tensors(adamw: torch.optim.AdamW, names: Iterable[str]) -> dict[str, Tensor]:
    """Return AdamW's state by parameter name: `mean.NAME`, `mean_square.NAME` and `num_updates` i64 []."""
    parameters = [parameter for group in adamw.param_groups for parameter in group["params"]]
    tensors: dict[str, Tensor] = {}
    counts = set()
    for name, parameter in zip(names, parameters, strict=True):
        state = adamw.state[parameter]
        tensors[MEAN + name] = state["exp_avg"]
        tensors[MEAN_SQUARE + name] = state["exp_avg_sq"]
        counts.add(int(state["step"]))
    assert len(counts) == 1, f"all parameters are updated together, but their counts are {sorted(counts)}"
    tensors[COUNT] = torch.tensor(counts.pop())
    return tensors


def load_adamw(adamw: torch.optim.AdamW, names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """Put the state that `adamw_tensors` gave into a new AdamW over parameters of the same names and shapes.

    Raises:
        VlbError: names or shapes differ.
    """
    parameters = [parameter for group in adamw.param_groups for parameter in group["params"]]
    named = dict(zip(names, parameters, strict=True))
    wanted = {COUNT: ()} | {kind + name: tuple(p.shape) for name, p in named.items() for kind in (MEAN, MEAN_SQUARE)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))[:3]
        raise VlbError(
            f"the optimizer state does not fit the model; differences begin with {odd}. It is of another model."
        )
    count = tensors[COUNT].to(torch.float32)
    state = {
        # Copies: aligned memory, on which kernels round as they did before.
        i: {
            "step": count.clone(),
            "exp_avg": tensors[MEAN + name].clone(),
            "exp_avg_sq": tensors[MEAN_SQUARE + name].clone(),
        }
        for i, name in enumerate(named)
    }
    adamw.load_state_dict({"state": state, "param_groups": adamw.state_dict()["param_groups"]})
