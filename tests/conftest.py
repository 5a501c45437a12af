"""Fixtures that several test files use."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_vlb import Answer
from small_text import make_text, write_vocabulary

from cli.main import main


@pytest.fixture
def vlb(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `vlb` in this process as a person does: arguments in; exit code, stdout and stderr out, and no traceback."""

    def run(*args: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Answer(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the vocabulary of made texts, a `vocab.txt`."""
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 120 made documents."""
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_bytes(make_text(1, 120).encode())
    return path
