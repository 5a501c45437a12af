"""Where tests find real photos and annotations, which are not part of the project."""

import os
from pathlib import Path

import pytest


def real_data(*parts: str) -> Path:
    """Return a path under the folder of real data (VLB_REAL_DATA, or beside the project), or skip the test."""
    beside = Path(__file__).parents[2] / "shared" / "realdata"
    path = Path(os.environ.get("VLB_REAL_DATA", beside)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real data: {Path(*parts)}")
    return path
