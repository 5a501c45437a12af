"""Attention: each sequence by itself, whatever the kernel."""

import pytest
import torch
from torch import Tensor, nn

from vlbert_data.errors import ConfigError
from vlbert_train import attention
from vlbert_train.attention import make_packing, packed_attention, uses_varlen

LENGTHS = (5, 1, 9, 9, 3)
HEADS, WIDTH = 2, 8


def qkv(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (1, HEADS, sum(LENGTHS), WIDTH)
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


def borders(device: str = "cpu") -> Tensor:
    return torch.tensor([0, *LENGTHS], device=device).cumsum(0).int()


def attend(tensors: list[Tensor], *, is_varlen: bool = False, dropout: float = 0.0) -> Tensor:
    packing = make_packing(borders(tensors[0].device.type), max(LENGTHS), sum(LENGTHS), is_varlen=is_varlen)
    found, weights = packed_attention(
        nn.Identity(), *tensors, None, packing=packing, dropout=dropout, scaling=WIDTH**-0.5
    )
    assert weights is None
    return found


def one_by_one(tensors: list[Tensor]) -> Tensor:
    """Attention of one sequence after another, written out."""
    parts = []
    for q, k, v in zip(*(tensor.split(LENGTHS, dim=2) for tensor in tensors), strict=True):
        weights = (q @ k.transpose(2, 3) * WIDTH**-0.5).softmax(dim=3)
        parts.append((weights @ v).transpose(1, 2))  # [1, L, A, D]
    return torch.cat(parts, dim=1)


def test_packed_attention_and_its_gradients_are_those_of_one_sequence_after_another() -> None:
    packed, plain = qkv(), qkv()
    found, expected = attend(packed), one_by_one(plain)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.autograd.backward((found * weights).sum())
    torch.autograd.backward((expected * weights).sum())
    for ours, theirs in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_sequences_of_one_length_need_no_padding_and_sequences_of_one_position_see_themselves() -> None:
    tensors = qkv()
    packing = make_packing(torch.arange(sum(LENGTHS) + 1).int(), 1, sum(LENGTHS), is_varlen=False)
    found, _ = packed_attention(nn.Identity(), *tensors, None, packing=packing, dropout=0.0, scaling=1.0)
    assert packing.is_real is not None
    assert packing.is_real.all()
    torch.testing.assert_close(found, tensors[2].transpose(1, 2))


def test_dropout_of_attention_weights_is_taken() -> None:
    torch.manual_seed(0)
    found = attend(qkv(), dropout=0.5)
    assert not torch.allclose(found, attend(qkv()))


def test_auto_takes_sdpa_where_varlen_cannot_run_and_varlen_by_name_says_why() -> None:
    hidden = torch.zeros(3, 4)
    assert not uses_varlen("auto", hidden, 0.0)
    assert not uses_varlen("sdpa", hidden, 0.0)
    with pytest.raises(ConfigError, match=r"model\.attention is varlen, but it runs on CUDA and the model is on cpu"):
        uses_varlen("varlen", hidden, 0.0)


def test_transformers_finds_it_by_name() -> None:
    from transformers import AttentionInterface

    attention.register()
    assert AttentionInterface()[attention.PACKED] is packed_attention


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen runs on CUDA")
def test_varlen_gives_what_sdpa_gives() -> None:
    found, expected = qkv("cuda", torch.bfloat16), qkv("cuda", torch.bfloat16)
    ours, theirs = attend(found, is_varlen=True), attend(expected)
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    torch.autograd.backward(ours.float().square().sum())
    torch.autograd.backward(theirs.float().square().sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=3e-2, atol=3e-2)
    hidden = torch.zeros(1, device="cuda", dtype=torch.bfloat16)
    assert uses_varlen("auto", hidden, 0.0)
    assert not uses_varlen("auto", hidden, 0.1)
    with pytest.raises(ConfigError, match="dropout"):
        uses_varlen("varlen", hidden, 0.1)
    with pytest.raises(ConfigError, match="bfloat16"):
        uses_varlen("varlen", hidden.float(), 0.0)
