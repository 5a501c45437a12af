"""How `vlb` feels: typos, exit codes, pipes, colours, Ctrl-C, completion, and the page that documents it."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from pages_world import write_folder
from run_vlb import Answer
from small_text import make_text, write_vocabulary

from cli.main import COMMANDS, main
from cli.options import Choice
from docs.make_cli import PAGE, commands, paragraphs, render
from vlbert_data.synthetic import FakeShards

ROOT = Path(__file__).parents[1]


def run(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vlb` in a process of its own, its output piped."""
    command = [sys.executable, "-m", "cli.main", *map(str, args)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("feel") / "shards", FakeShards(num_images=40), shard_size=4)


def options_of(command: click.Command) -> set[str]:
    """Return all spellings of a command's options."""
    return {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}


def examples() -> Iterator[tuple[str, str]]:
    """Yield (command, example) of all examples in all helps, continued lines joined."""
    for name, command in commands():
        for part in paragraphs(command):
            if part.startswith("\b"):
                text = re.sub(r"\\\n\s*", "", part.removeprefix("\b"))
                yield from ((name, line.strip()) for line in text.splitlines() if line.strip().startswith("vlb "))


def test_the_page_of_commands_is_as_the_commands_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run make docs"


@pytest.mark.parametrize(("name", "line"), list(examples()))
def test_examples_use_options_that_exist(name: str, line: str) -> None:
    words = shlex.split(line)
    found = {word for word in words if word.startswith("--")}
    assert found <= options_of(dict(commands())[words[1]]), f"vlb {name} --help"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_answers_to_help_and_to_a_mistyped_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert not stop.value.code
    assert f"Usage: vlb {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([name, "--hlep"])
    assert stop.value.code == 2
    answer = capsys.readouterr()
    assert (answer.out, "'--help'" in answer.err) == ("", True)


def test_every_choice_of_words_suggests_the_nearest() -> None:
    plain = [
        (name, parameter.name)
        for name, command in commands()
        for parameter in command.params
        if isinstance(parameter.type, click.Choice) and not isinstance(parameter.type, Choice)
    ]
    assert plain == []


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("inspct-shard x", 2, "Did you mean inspect-shard?"),
        ("frobnicate", 2, "vlb --help lists the commands"),
        ("build-shards x --detector y --out z --container hdf", 2, "Did you mean hdf5?"),
        ("pretrain --out x --shards y --device cpuu", 2, "Did you mean cpu?"),
        ("pretrain --out x --preset vlbert-bas", 1, "Did you mean vlbert-base?"),
        ("pretrain --out x --shards y --set run.stps=3", 1, "Did you mean run.steps?"),
        ("completion zhs", 2, "Did you mean zsh?"),
        ("inspect-shard /none", 1, "/none: there is no such"),
    ],
)
def test_typos_are_answered_with_the_nearest_right_word(
    line: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    answer = capsys.readouterr()
    assert (stop.value.code, answer.out) == (code, "")
    assert words in answer.err


def test_results_are_plain_text_on_stdout_and_bars_stay_away_from_pipes(shards: Path) -> None:
    for options in ((), ("--verify",), ("--record", "00000003")):
        done = run("inspect-shard", shards, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
        assert "\x1b" not in done.stdout
        assert "\r" not in done.stdout


def test_no_color_is_honoured_on_a_terminal(shards: Path) -> None:
    outputs = {}
    for name, environment in (("colours", {}), ("plain", {"NO_COLOR": "1"})):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "cli.main", "inspect-shard", str(shards), "--verify"]
        clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        process = subprocess.Popen(
            command, stdout=theirs, stderr=theirs, cwd=ROOT, env={**clean, "TERM": "xterm-256color", **environment}
        )
        os.close(theirs)
        outputs[name] = read_all(ours)
        assert process.wait() == 0
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
    assert coloured.search(outputs["colours"]), "a bar on a terminal has colours"
    assert not coloured.search(outputs["plain"])


def read_all(terminal: int) -> str:
    found = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so where the other side of a terminal is closed
            part = b""
        if not part:
            os.close(terminal)
            return found.decode()
        found += part


def test_a_reader_that_leaves_early_is_no_error(shards: Path) -> None:
    command = f"{sys.executable} -m cli.main inspect-shard {shards} --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 10"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stderr == ""


def test_what_the_system_says_of_a_file_is_one_line(vlb: Callable[..., Answer], tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    assert vlb("import-features", name, "--out", tmp_path / "out") == Answer(
        1, "", f"Error: {name}: File name too long.\n"
    )


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.4])
def test_ctrl_c_ends_a_command_and_its_helpers_with_one_line(tmp_path: Path, after_s: float) -> None:
    vocabulary, out = write_vocabulary(tmp_path / "vocab.txt"), tmp_path / "out"
    (tmp_path / "long.txt").write_bytes(make_text(5, 200).encode() * 3000)
    args = ["build-corpus", tmp_path / "long.txt", "--tokenizer", vocabulary, "--out", out, "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, args), "--shard-size", "1M"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    # Helpers start soon after the folder is there; on a busy machine that may take a while.
    deadline = time.monotonic() + 60
    while not out.exists():
        assert time.monotonic() < deadline, "the command does not begin"
        time.sleep(0.01)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (1, "Stopped.")


@pytest.mark.parametrize(("words", "expected"), [
    ("vlb insp", ["inspect-shard"]),
    ("vlb completion z", ["zsh"]),
    ("vlb pretrain --preset vlbert-b", ["vlbert-base"]),
    ("vlb pretrain --set run.checkpoint", ["run.checkpoint_every="]),
    ("vlb build-shards --container h", ["hdf5"]),
    ("vlb inspect-shard --html-", ["--html-images"]),
])  # fmt: skip
def test_shells_complete_commands_options_values_and_settings(words: str, expected: list[str]) -> None:
    place = str(len(words.split()) - 1)
    done = run(_VLB_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=place)
    assert [line.split(",", 1)[1] for line in done.stdout.splitlines()] == expected


def test_bash_takes_the_script_that_completion_prints(tmp_path: Path) -> None:
    script = run("completion", "bash").stdout
    (tmp_path / "vlb").write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m cli.main "$@"\n')
    (tmp_path / "vlb").chmod(0o755)
    ask = 'COMP_WORDS=(vlb build-c); COMP_CWORD=1; _vlb_completion vlb; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("build-corpus", "")
    for shell in ("zsh", "fish"):
        assert f"_VLB_COMPLETE={shell}_complete" in run("completion", shell).stdout
