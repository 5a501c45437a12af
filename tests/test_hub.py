"""A hub that cannot be reached is not waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlbert_data.hub import is_out_of_reach

NOWHERE = "http://nowhere.invalid"  # a name that is never given to anybody (RFC 6761)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take what the machine says of proxies out of the environment."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_host_without_an_address_is_out_of_reach_but_not_behind_a_proxy(direct: pytest.MonkeyPatch) -> None:
    assert is_out_of_reach(NOWHERE)
    assert not is_out_of_reach("http://localhost:9")
    assert not is_out_of_reach("no address")
    direct.setenv("HF_ENDPOINT", "http://localhost:9")
    assert not is_out_of_reach()
    direct.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert not is_out_of_reach(NOWHERE)


@pytest.mark.parametrize("load", ["tokenizer import load_tokenizer as load", "weights import resolve as load"])
def test_a_name_of_a_hub_out_of_reach_is_refused_without_trying_again(
    direct: pytest.MonkeyPatch, tmp_path: Path, load: str
) -> None:
    code = (
        f"from vlbert_data.{load}\nfrom vlbert_data.errors import ConfigError\n"
        "try:\n    load('nobody/has-it')\nexcept ConfigError as error:\n    print(error)"
    )
    place = {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **place}
    )
    assert "nobody/has-it: no " in done.stdout
    assert "Retry" not in done.stderr
