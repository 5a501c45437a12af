"""How exactly the network computes. Promise: float32 means float32, on CUDA too, and settings are put back.

CUDA's libraries round the inputs of float32 convolutions to 10 bits (TF32) unless they are told otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlbert_data.errors import ConfigError

# name -> (type of weights and activations, how CUDA multiplies float32)
PRECISIONS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
}


def check_precision(name: str) -> str:
    """Return `name`.

    Raises:
        ConfigError: not one of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"precision {name!r}; it is one of {', '.join(PRECISIONS)}.")
    return name


@contextmanager
def multiplying(name: str) -> Iterator[None]:
    """Let CUDA multiply float32 as the precision says, until the end of the block."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = PRECISIONS[name][1]
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
