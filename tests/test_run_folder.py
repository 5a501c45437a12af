"""Run folders: one writer at a time, nothing overwritten, figures cut back to the checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlbert_data.errors import ConfigError, VlbError
from vlbert_train import run_folder
from vlbert_train.config import preset
from vlbert_train.run_folder import RunFolder


def test_settings_survive_the_folder(tmp_path: Path) -> None:
    run = run_folder.new_run(tmp_path / "runs" / "a")
    config = preset("tiny").assigned(["optim.peak_lr=1.2345678901234567e-5", "data.shards=x,y"])
    run.write_config(config)
    assert run_folder.find_run(tmp_path / "runs" / "a") == (run, None)
    assert run.read_config() == config
    assert run.newest_checkpoint() is None


def test_a_folder_that_holds_anything_is_not_overwritten(tmp_path: Path) -> None:
    run = run_folder.new_run(tmp_path / "a")
    run.write_config(preset("tiny"))
    with pytest.raises(ConfigError, match=r"holds a run already\. Go on with it by vlb pretrain --resume"):
        run_folder.new_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"exists and is no run folder\. Choose another --out"):
        run_folder.new_run(tmp_path / "b")
    run_folder.new_run(tmp_path / "c")
    run_folder.new_run(tmp_path / "c")  # still empty


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such folder\. Start a run with vlb pretrain --out"):
        run_folder.find_run(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"has no config\.json, so it is no run folder"):
        run_folder.find_run(tmp_path)
    (tmp_path / "config.json").write_text('{"run": {"stepz": 3}}')
    with pytest.raises(ConfigError, match=r"config\.json: there is no setting run\.stepz"):
        run_folder.find_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: damaged"):
        run_folder.find_run(tmp_path)


def test_a_checkpoint_names_its_run(tmp_path: Path) -> None:
    run = run_folder.new_run(tmp_path / "a")
    run.write_config(preset("tiny"))
    chosen = run.checkpoints / "step-00000007"
    chosen.mkdir(parents=True)
    assert run_folder.find_run(chosen) == (run, chosen)
    assert run.newest_checkpoint() == chosen


def test_a_run_folder_in_use_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    hold = (
        "import sys, pathlib; from vlbert_train import run_folder as r\n"
        "with r.locked(r.RunFolder(path=pathlib.Path(sys.argv[1]))):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"in use by process {other.pid}\. Wait until it ends"):
            run_folder.locked(run).__enter__()
        other.kill()
    with run_folder.locked(run):
        pass


def test_figures_of_later_steps_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    run.cut_metrics(5)
    lines = [json.dumps({"step": step, "loss": step / 7}) + "\n" for step in (10, 20, 30)]
    run.metrics.write_text("".join(lines) + '{"step": 15')
    run.cut_metrics(20)
    assert run.metrics.read_text() == "".join(lines[:2])
    run.cut_metrics(0)
    assert run.metrics.read_text() == ""


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ConfigError, VlbError), match=r"file/run: cannot be written: Not a directory"):
        run_folder.new_run(tmp_path / "file" / "run")
