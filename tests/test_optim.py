"""Learning rate, clipping and the step that is refused: compared with slow and obvious versions."""

import itertools
import math

import pytest
import torch
from torch import nn

from vlbert_data.errors import VlbError
from vlbert_train.config import OptimConfig
from vlbert_train.optim import adamw_tensors, learning_rate, load_adamw, make_adamw, safe_step


def test_learning_rate_rises_to_its_peak_at_the_last_warmup_step_and_falls_to_almost_nothing() -> None:
    optim = OptimConfig(peak_lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, optim, 12) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(12, optim, 12) == learning_rate(99, optim, 12) == 0


def test_learning_rate_has_no_jump_anywhere() -> None:
    optim = OptimConfig(peak_lr=2.56e-5, warmup_steps=160)
    rates = [learning_rate(step, optim, 2578) for step in range(2578)]
    assert max(rates) == optim.peak_lr
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= optim.peak_lr / 160 * 1.0001


def test_constant_schedule_stays_and_decay_steps_moves_the_end() -> None:
    assert learning_rate(9, OptimConfig(peak_lr=3.0, warmup_steps=0, schedule="constant"), 10) == 3.0
    assert learning_rate(10, OptimConfig(peak_lr=3.0, warmup_steps=0, decay_steps=20), 10) == 1.5


def _toy() -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return (
        nn.Parameter(torch.randn(5, 4, generator=generator)),
        nn.Parameter(torch.randn(7, generator=generator)),
    )


def _fill_gradients(parameters: tuple[nn.Parameter, ...], step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10
    return torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))


OPTIM = OptimConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.3, clip_norm=2.0)


def test_step_is_that_of_clipping_first_and_plain_adamw_after() -> None:
    ours, theirs = _toy(), _toy()
    adamw = make_adamw(ours, OPTIM)
    plain = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.3, foreach=False)
    for step in range(4):
        norm = _fill_gradients(ours, step)
        safe_step(adamw, lr=0.1 / (step + 1), norm=norm, clip_norm=2.0, refused=torch.zeros(()))
        _fill_gradients(theirs, step)
        nn.utils.clip_grad_norm_(theirs, 2.0)
        plain.param_groups[0]["lr"] = 0.1 / (step + 1)
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_refused_step_leaves_weights_and_moments_as_they_were(bad: float) -> None:
    parameters = _toy()
    adamw = make_adamw(parameters, OPTIM)
    names = ["a", "b"]
    safe_step(adamw, lr=0.1, norm=_fill_gradients(parameters, 0), clip_norm=2.0, refused=torch.zeros(()))
    before = [p.detach().clone() for p in parameters]
    state = {name: tensor.clone() for name, tensor in adamw_tensors(adamw, names).items()}
    _fill_gradients(parameters, 1)
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = bad
    safe_step(adamw, lr=0.1, norm=torch.tensor(bad), clip_norm=2.0, refused=torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    after = adamw_tensors(adamw, names)
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_state_carried_to_a_new_optimizer_continues_bit_equal() -> None:
    straight, stopped = _toy(), _toy()
    first, one = make_adamw(stopped, OPTIM), make_adamw(straight, OPTIM)
    for step in range(6):
        if step == 3:
            state = adamw_tensors(first, ["a", "b"])
            first = make_adamw(stopped, OPTIM)
            load_adamw(first, ["a", "b"], {name: tensor.clone() for name, tensor in state.items()})
        for parameters, adamw in ((straight, one), (stopped, first)):
            norm = _fill_gradients(parameters, step)
            safe_step(adamw, lr=0.05, norm=norm, clip_norm=2.0, refused=torch.zeros(()))
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))


def test_state_of_another_model_is_refused() -> None:
    parameters = _toy()
    adamw = make_adamw(parameters, OPTIM)
    safe_step(adamw, lr=0.1, norm=_fill_gradients(parameters, 0), clip_norm=None, refused=torch.zeros(()))
    state = adamw_tensors(adamw, ["a", "b"])
    with pytest.raises(VlbError, match="of another model"):
        load_adamw(make_adamw(_toy(), OPTIM), ["a", "c"], state)
    state["mean.a"] = state["mean.a"][:2]
    with pytest.raises(VlbError, match="differences begin with"):
        load_adamw(make_adamw(_toy(), OPTIM), ["a", "b"], state)
