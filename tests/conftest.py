"""Fixtures that several test files use."""

from collections.abc import Callable

import pytest
from run_vlb import Answer

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
