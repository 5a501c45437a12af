"""Gradients over ranks: two processes add up to one, also when a rank has nothing to say to a parameter."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vlbert_data.errors import ConfigError, VlbError
from vlbert_train import distributed
from vlbert_train.distributed import Gradients, World


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def _loss(model: nn.Module, rows: Tensor, *, skips_last: bool) -> Tensor:
    assert isinstance(model, nn.Sequential)
    hidden: Tensor = model[:4](rows)
    loss: Tensor = hidden.square().sum() if skips_last else model[4](hidden).square().sum() + hidden.square().sum()
    return loss


def _gradients(model: nn.Module, world: World, parts: list[Tensor], *, skips_last: bool = False) -> Tensor:
    """Return all gradients and their norm, after two rounds: the second shows that nothing is left of the first."""
    gradients = Gradients(model.parameters(), world, buffer_bytes=64)
    for _ in range(2):
        gradients.clear()
        for part in parts[:-1]:
            with gradients.hold():
                _loss(model, part, skips_last=skips_last).backward()
        _loss(model, parts[-1], skips_last=skips_last).backward()
        norm = gradients.finish()
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([*flat, norm[None]])


def _rank(rank: int, port: int, out: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with distributed.join("cpu") as world:
        assert (world.rank, world.size, world.is_first) == (rank, 2, rank == 0)
        assert distributed.sum_numbers(world, [rank, 10]) == [1, 20]
        distributed.check_agreement(world, "ab" * 16, "manifests")
        try:
            distributed.check_agreement(world, f"{rank}b" * 16, "manifests")
            refused = False
        except VlbError:
            refused = True
        assert refused
        model = _model()
        with torch.no_grad():
            model[0].weight += rank
        distributed.broadcast_from_first(world, model.parameters())
        # Rank 0 never reaches the last layer, as a rank whose slice has no RoI never reaches the RoI head.
        rows = torch.arange(48.0).reshape(8, 6).cos()
        result = _gradients(model, world, list(rows[rank * 4 : rank * 4 + 4].split(2)), skips_last=rank == 0)
        torch.save(result, Path(out) / f"{rank}.pt")


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_give_the_gradients_of_one_even_where_one_skips_a_layer(tmp_path: Path) -> None:
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_rank, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(found[0], found[1])

    model, rows = _model(), torch.arange(48.0).reshape(8, 6).cos()
    (_loss(model, rows[:4], skips_last=True) + _loss(model, rows[4:], skips_last=False)).backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    expected = torch.cat([plain, torch.linalg.vector_norm(plain)[None]])
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)


def test_eight_micro_batches_give_the_gradients_of_one() -> None:
    rows = torch.arange(96.0).reshape(16, 6).sin()
    whole = _gradients(_model(), World(), [rows])
    parts = _gradients(_model(), World(), list(rows.split(2)))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_a_parameter_that_is_not_used_has_gradient_zero_and_not_none() -> None:
    model = _model()
    _gradients(model, World(), [torch.ones(2, 6)], skips_last=True)
    assert isinstance(model, nn.Sequential)
    for parameter in model[4].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_gradients_of_several_ranks_stay_views_of_the_flat_buffers() -> None:
    model = _model()
    gradients = Gradients(model.parameters(), World(size=2), buffer_bytes=10**6)
    gradients.clear()
    with gradients.hold():
        _loss(model, torch.ones(3, 6), skips_last=False).backward()
    assert len(gradients.buffers) == 1
    flat = [p.grad.flatten() for p in reversed(list(model.parameters())) if p.grad is not None]
    assert torch.equal(gradients.buffers[0], torch.cat(flat))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_cuda_where_there_is_none_says_so() -> None:
    assert distributed.choose_device("auto", 0) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"finds no CUDA device\. Use --set run\.device=cpu"):
        distributed.choose_device("cuda", 0)
