"""Attention over packed sequences. Promise: no position sees another sequence, whichever kernel computes it.

This is the only place that knows where sequences end. `sdpa` lays them out in a padded grid and back; `varlen` takes
them as they are, on CUDA, in half precision and without dropout of attention weights, which its kernel does not have.

Letters: B sequences, S all their positions, L the longest, A attention heads, D width of a head.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vlbert_data.errors import ConfigError

# The name that transformers knows `packed_attention` by.
PACKED = "vlbert_packed"
HALF = (torch.bfloat16, torch.float16)
# The flash kernels behind varlen need Ampere or newer.
VARLEN_CAPABILITY = (8, 0)

Wanted = Literal["auto", "sdpa", "varlen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Where sequences end, in the form that the kernel wants; made once a batch and used by every layer.

    cu_seqlens: int32 [B + 1]. is_varlen: which kernel. Of sdpa alone: grid_slots int64 [S], the place of each position
    in the grid of B x L places, and is_real bool [B, 1, 1, L], False where the grid is padding.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    is_varlen: bool
    grid_slots: Tensor | None = None
    is_real: Tensor | None = None


def register() -> None:
    """Make `packed_attention` known to transformers, which finds attention by name."""
    AttentionInterface.register(PACKED, packed_attention)


def make_packing(cu_seqlens: Tensor, max_seqlen: int, num_slots: int, *, is_varlen: bool) -> Packing:
    """Return the packing of sequences that fill cu_seqlens[b] .. cu_seqlens[b + 1] of `num_slots` positions (S).

    cu_seqlens: int32 [B + 1]. max_seqlen: L. Nothing here waits for the device.
    """
    if is_varlen:
        return Packing(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, is_varlen=True)
    starts = cu_seqlens[:-1].long()  # [B]
    lengths = cu_seqlens.diff()  # [B]
    grid = torch.arange(max_seqlen, device=cu_seqlens.device)  # [L]
    # A position's place is its number plus the padding before its sequence.
    padding = torch.arange(len(starts), device=cu_seqlens.device) * max_seqlen - starts  # [B]
    padding = torch.repeat_interleave(padding, lengths, output_size=num_slots)  # [S]
    return Packing(
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        is_varlen=False,
        grid_slots=torch.arange(num_slots, device=cu_seqlens.device) + padding,
        is_real=(grid < lengths[:, None])[:, None, None],
    )


def uses_varlen(wanted: Wanted, hidden: Tensor, dropout: float) -> bool:
    """Return whether `varlen` computes attention over `hidden`; dropout: of attention weights, 0 outside training.

    Raises:
        ConfigError: it is wanted by name and cannot run.
    """
    if wanted == "sdpa":
        return False
    obstacle = _obstacle(hidden, dropout)
    if obstacle and wanted == "varlen":
        raise ConfigError(f"model.attention is varlen, but {obstacle}. Set model.attention=auto or sdpa.")
    return not obstacle


def _obstacle(hidden: Tensor, dropout: float) -> str:
    """Return why varlen cannot run, '' if it can."""
    kind = hidden.device.type
    if kind != "cuda":
        return f"it runs on CUDA and the model is on {kind}"
    if _is_too_old(hidden.device):
        return "this GPU is older than its kernel needs (compute capability 8.0)"
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if dtype not in HALF:
        return f"it computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')} (run.precision=bf16)"
    if dropout:
        return "its kernel has no dropout (model.attention_probs_dropout_prob=0)"
    return ""


# torch.compile asks once, while it compiles, and takes the answer for good.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no types
def _is_too_old(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) < VARLEN_CAPABILITY


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention inside each sequence, [1, S, A, D], as transformers' layers want it.

    query, key, value: [1, A, S, D]. options: `packing`, and `scaling` and `dropout` as the layer gives them.
    """
    assert attention_mask is None, "sequences are told by the packing, not by a mask"
    packing, dropout, scale = options["packing"], options["dropout"], options["scaling"]
    # As they lie in memory: [S, A, D].
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if packing.is_varlen:
        return _varlen((q, k, v), packing, scale)[None], None
    return _sdpa((q, k, v), packing, dropout, scale)[None], None


def _varlen(packed: tuple[Tensor, Tensor, Tensor], packing: Packing, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = packed
    borders, longest = packing.cu_seqlens, packing.max_seqlen
    found = varlen_attn(q, k, v, borders, borders, longest, longest, scale=scale)
    assert isinstance(found, Tensor), "nothing beside the output was asked for"
    return found


def _sdpa(packed: tuple[Tensor, Tensor, Tensor], packing: Packing, dropout: float, scale: float) -> Tensor:
    assert packing.grid_slots is not None, "the packing was made for sdpa"
    q, k, v = (_to_grid(tensor, packing) for tensor in packed)
    found = scaled_dot_product_attention(q, k, v, attn_mask=packing.is_real, dropout_p=dropout, scale=scale)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, packing.grid_slots)  # [S, A, D]


def _to_grid(packed: Tensor, packing: Packing) -> Tensor:
    """Return [B, A, L, D] of [S, A, D], zero where nothing stands."""
    assert packing.grid_slots is not None, "the packing was made for sdpa"
    num, longest = packing.cu_seqlens.shape[0] - 1, packing.max_seqlen
    grid = packed.new_zeros(num * longest, *packed.shape[1:])
    grid.index_copy_(0, packing.grid_slots, packed)
    return grid.view(num, longest, *packed.shape[1:]).transpose(1, 2)
