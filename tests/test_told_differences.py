"""Options that changed since a build began are told as they were typed, with both values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_world import GivenBoxes, MeanColours, make_world
from foreign_files import lxmert_row, make_detections, write_captions, write_rows
from run_vlb import Answer
from small_text import make_text, write_vocabulary

from vlbert_data.build.config import BuildConfig
from vlbert_data.build.differences import several, told
from vlbert_data.build.run import Build
from vlbert_data.build.state import STATE_FOLDER
from vlbert_data.errors import ConfigError
from vlbert_data.sources.jsonl import JsonlSource

IMAGES = [make_detections(number, num_rois=4) for number in range(1, 6)]
HASH, OTHER_HASH = "0123456789abcdef", "fedcba9876543210"


def test_an_option_is_named_with_both_values_and_a_hash_never() -> None:
    old = {"settings": {"size": 4, "kind": "a"}, "model": {"weights": HASH, "scale": 1.0}, "same": 1, "file": HASH}
    new = {
        "settings": {"size": 5, "kind": "a"},
        "model": {"weights": OTHER_HASH, "scale": 1.0},
        "same": 1,
        "file": HASH,
    }
    names = {"settings.size": "--size"}
    asked = {"model": {"--model": "hf:x"}, "file": {"--file": "a"}}
    assert list(told(old, new, ({}, {}), names))[1:] == ["--size was 4, is now 5"]
    assert next(told(old, new, (asked, asked), names)) == "what --model hf:x stands for has changed since"
    assert next(told(old, new, ({}, asked), names)) == "--model hf:x: not what it was made with"
    before = {**asked, "model": {"--model": "hf:y"}}
    assert next(told(old, new, (before, asked), names)) == "--model was hf:y, is now hf:x"
    before = {**asked, "model": {"--model": None}}
    assert next(told(old, new, (before, asked), names)) == "--model was not given, is now hf:x"
    scaled = {**old, "model": {"weights": OTHER_HASH, "scale": 2.0}}
    assert list(told(old, scaled, (asked, asked), names)) == ["--model hf:x: scale was 1.0, is now 2.0"]
    assert list(told(old, {**old, "file": OTHER_HASH}, (before, asked), names)) == [
        "what --file a stands for has changed since"
    ]
    assert list(told(old, old, (before, asked), names)) == []


def test_of_many_inputs_the_first_are_named() -> None:
    assert several(["a", "b"]) == "a b"
    assert several([str(number) for number in range(9)]) == "0 1 2 3 4 and 4 more"


@pytest.fixture
def begun(vlb: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An import that was begun and not finished; the command of it."""
    monkeypatch.chdir(tmp_path)
    table = write_rows(tmp_path / "f.tsv", [lxmert_row(found) for found in IMAGES])
    lines = table.read_bytes()
    write_captions(tmp_path / "a.json", IMAGES)
    write_captions(tmp_path / "b.json", IMAGES[:4])
    command = ["import-features", "f.tsv", "--captions", "a.json", "--out", "out", "--shard-size", "2"]
    # The last line is cut short: too many rejects, so the import stays unfinished.
    table.write_bytes(lines[:-40])
    answer = vlb(*command, "--max-rejects", "0")
    assert (answer.code, (tmp_path / "out" / STATE_FOLDER).is_dir()) == (1, True), answer.err
    return command


def test_an_unfinished_import_names_the_options_that_changed(
    vlb: Callable[..., Answer], begun: list[str], tmp_path: Path
) -> None:
    def told_for(*options: str) -> str:
        answer = vlb(*begun, *options)
        assert answer.code == 1
        assert answer.err.startswith("Error: out: begun with other settings: ")
        return answer.err.removeprefix("Error: out: begun with other settings: ").partition(". Give")[0]

    assert told_for("--captions", "b.json") == "--captions was a.json, is now b.json"
    assert told_for("--shard-size", "3") == "--shard-size was 2, is now 3"
    assert told_for("--key-pattern", r"0*(\d+)$") == r"--key-pattern was not given, is now 0*(\d+)$"
    assert told_for("--no-labels") == "--no-labels was not given, is now given"
    write_captions(tmp_path / "a.json", IMAGES[:3])
    assert told_for().startswith("--captions a.json: bytes was ")
    with (tmp_path / "f.tsv").open("ab") as stream:
        stream.write(b"x")
    write_captions(tmp_path / "a.json", IMAGES)
    assert told_for() == "what the input f.tsv stands for has changed since"


def test_an_unfinished_import_without_what_was_typed_still_names_the_option(
    vlb: Callable[..., Answer], begun: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "out" / STATE_FOLDER / "build.json"
    facts = json.loads(path.read_bytes())
    del facts["asked"]
    path.write_text(json.dumps(facts))
    answer = vlb(*begun, "--captions", "b.json")
    assert "--captions b.json: bytes was " in answer.err
    assert 'name was "a.json", is now "b.json"' in answer.err
    assert vlb(*begun, "--max-rejects", "1").code == 0


def test_a_finished_import_names_the_option(vlb: Callable[..., Answer], begun: list[str]) -> None:
    assert vlb(*begun, "--max-rejects", "1").code == 0
    answer = vlb(*begun, "--captions", "b.json")
    assert (answer.code, 'name was "a.json", is now "b.json"' in answer.err) == (1, True), answer.err
    assert vlb(*begun, "--max-rejects", "1").code == 0, "the same again is no other import"


def test_a_build_of_shards_names_what_was_typed(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 6)

    def build(detector: str, scale: float = 1.0, table: Path = table, **settings: Any) -> Build:
        models = {"--detector": detector, "--describer": None}
        return Build(
            folder=tmp_path / "out",
            source=JsonlSource([table]),
            detector=GivenBoxes(),
            describer=MeanColours(scale),
            config=BuildConfig(**{"shard_size": 2, "min_rois": 0, **settings}),
            asked={"source": {"the input": str(table)}, "detector": models, "describer": models},
        )

    build("given").run((0, 2))
    for changed, words in (
        (build("other", scale=2.0), "--detector was given, is now other"),
        (build("given", scale=2.0), "--detector given: scale was 1.0, is now 2.0"),
        (
            build("given", max_rois=20, thumbnail_px=9, seed=3),
            "--max-rois was 100, is now 20; seed was 0, is now 3; --thumb",
        ),
        (
            build("given", table=make_world(tmp_path / "more", 5)),
            f"the input was {table}, is now {tmp_path}/more/world",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            changed.run((0, 2))
        assert words in str(caught.value)


def test_a_corpus_names_what_was_typed(
    vlb: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "cased.txt").write_text((tmp_path / "vocab.txt").read_text() + "Zurich\n")
    (tmp_path / "a.txt").write_bytes(make_text(1, 30).encode())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 30)
    command = ["build-corpus", "a.txt", "b.txt", "--out", "out"]
    assert vlb(*command, "--tokenizer", "vocab.txt", "--max-rejects", "0").code == 1
    for changed, words in (
        ([*command, "--tokenizer", "cased.txt"], "--tokenizer was vocab.txt, is now cased.txt"),
        ([*command, "--tokenizer", "vocab.txt", "--document", "file"], '--document was "blank-line", is now "file"'),
        (
            ["build-corpus", "a.txt", *command[3:], "--tokenizer", "vocab.txt"],
            "the input was a.txt b.txt, is now a.txt",
        ),
    ):
        answer = vlb(*changed)
        assert answer.code == 1
        assert f"out: begun with other settings: {words}. Give the same again" in answer.err
