"""What `vlb` answers; the fixture `vlb` in conftest.py runs it."""

from typing import NamedTuple


class Answer(NamedTuple):
    """Exit code and what was written."""

    code: int
    out: str
    err: str
