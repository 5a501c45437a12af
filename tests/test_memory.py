"""How memory is kept: kernels made for sizes that do not come again are forgotten, unless the user says otherwise."""

import os
import re
import subprocess
import sys

import pytest
import torch

from vlbert_data.memory import KEPT_KERNELS, KEPT_KERNELS_VARIABLE

# Asks for the kernel of one size twice, then for those of `KEPT_KERNELS` others, then for the first again.
PROGRAM = f"""
from vlbert_data.memory import keep_few_kernels
keep_few_kernels()
import torch
convolution = torch.nn.Conv2d(64, 64, 3)
with torch.inference_mode():
    for side in (40, 40, *range(41, 41 + {KEPT_KERNELS}), 40):
        convolution(torch.zeros(1, 64, side, side))
"""


def kernels(**variables: str) -> list[str]:
    """Return, in order, whether each convolution's kernel was kept: "hit" or "miss", as oneDNN itself reports it."""
    environment = {name: value for name, value in os.environ.items() if name != KEPT_KERNELS_VARIABLE}
    environment |= {"ONEDNN_VERBOSE": "profile_create", **variables}
    told = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return re.findall(r"create:cache_(hit|miss),cpu,convolution,", told.stdout)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_kernels_of_sizes_long_past_are_forgotten_unless_the_user_says_otherwise() -> None:
    begin, others = ["miss", "hit"], ["miss"] * KEPT_KERNELS
    assert kernels() == [*begin, *others, "miss"]
    assert kernels(**{KEPT_KERNELS_VARIABLE: "1024"}) == [*begin, *others, "hit"]
