"""Text to corpora: the tokens of whole documents, in every container, interrupted at any moment."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_world import build, contents, documents_in, tokenised_whole
from real_data import real_data
from small_text import documents_of, make_corpus, make_text

from cli.main import main
from vlbert_data import corpus_read
from vlbert_data.corpus import STATE_FOLDER, CorpusFolder
from vlbert_data.corpus_build import Progress
from vlbert_data.errors import ShardError
from vlbert_data.tokenizer import load_tokenizer


def write_as(kind: str, folder: Path, documents: list[str]) -> Path:
    """Write documents in one of the known containers."""
    path = folder / f"texts.{kind}"
    plain = "\n\n\n".join(documents).encode()
    records = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents).encode()
    if kind == "parquet":
        pq.write_table(pa.table({"text": documents}), path, row_group_size=7)
    else:
        data = records if "jsonl" in kind else plain
        if kind.endswith("gz"):
            data = gzip.compress(data)
        elif kind.endswith("zst"):
            data = pa.compress(data, codec="zstd", asbytes=True)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_container_gives_the_tokens_of_whole_documents(
    kind: str, vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    documents = documents_of(text.read_bytes().decode())
    result = build(write_as(kind, tmp_path, documents), vocabulary, tmp_path / "out")
    assert documents_in(tmp_path / "out") == tokenised_whole(documents, vocabulary)
    assert result.manifest.num_documents == len(documents)
    assert not result.manifest.rejects
    if kind in ("txt", "jsonl", "parquet"):
        assert result.built > 3
    CorpusFolder.open(tmp_path / "out").verify()


@pytest.mark.parametrize("seed", range(4))
def test_where_files_are_cut_changes_no_document(seed: int, vocabulary: Path, tmp_path: Path) -> None:
    source = tmp_path / "novel.txt"
    source.write_bytes(make_text(seed, 60).encode())
    documents = documents_of(source.read_bytes().decode())
    for size in (1024, 1900, 1 << 20):
        build(source, vocabulary, tmp_path / str(size), unit_bytes=size)
        assert documents_in(tmp_path / str(size)) == tokenised_whole(documents, vocabulary)


def test_a_document_may_be_a_line_or_a_file(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    whole = text.read_bytes().decode()
    lines = [line for line in whole.split("\n") if line.strip()]
    build(text, vocabulary, tmp_path / "line", document="line")
    assert documents_in(tmp_path / "line") == tokenised_whole(lines, vocabulary)
    build(text, vocabulary, tmp_path / "file", document="file")
    assert documents_in(tmp_path / "file") == tokenised_whole([whole], vocabulary)


def test_lines_and_words_begin_where_they_begin(vocabulary: Path, tmp_path: Path) -> None:
    source = tmp_path / "novel.txt"
    source.write_bytes(make_text(5, 20).encode())
    build(source, vocabulary, tmp_path / "out", unit_bytes=1 << 20)
    tokenizer = load_tokenizer(vocabulary)
    lines = [line for line in source.read_bytes().decode().split("\n") if line.strip()]
    encodings = [tokenizer.backend.encode(line, add_special_tokens=False) for line in lines]
    file = CorpusFolder.open(tmp_path / "out").file(0)
    starts = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
    assert file.line_starts.tolist() == starts[:-1].tolist()
    words = [
        number == 0 or encoding.word_ids[number] != encoding.word_ids[number - 1]
        for encoding in encodings
        for number in range(len(encoding.ids))
    ]
    assert file.starts_word(0, file.num_tokens).tolist() == words


def test_a_line_too_long_for_one_part_loses_nothing(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_read, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(corpus_read, "BLOCK_BYTES", 64)
    source = tmp_path / "one.txt"
    source.write_text(" ".join(make_text(2, 8).split()))
    from vlbert_data.corpus_inputs import find_inputs, plan_units

    inputs = find_inputs([str(source)], leave_out=tmp_path / "out")
    ((piece,),) = plan_units(inputs, document="blank-line", unit_bytes=1 << 20, sizes={})
    events = list(corpus_read.read_piece(piece, "blank-line", "text", lambda _: None))
    parts = [event for event in events if isinstance(event, corpus_read.Line)]
    assert len(parts) > 10
    assert [part.begins for part in parts] == [True] + [False] * (len(parts) - 1)
    assert " ".join(part.text for part in parts).split() == source.read_text().split()


def test_several_processes_and_any_order_of_building_give_the_same_bytes(
    vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    build(text, vocabulary, tmp_path / "one")
    steps: list[Progress] = []
    two = make_corpus([text], vocabulary, tmp_path / "two", workers=2)
    two.on_progress = steps.append
    two.run()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    assert steps[-1].done_bytes == steps[-1].total_bytes == text.stat().st_size


def test_a_build_killed_again_and_again_ends_as_one_never_interrupted(
    vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    build(text, vocabulary, tmp_path / "whole")
    out = tmp_path / "out"
    script = str(Path(__file__).with_name("small_text.py"))
    rng, kills = random.Random(3), 0
    for _ in range(4):
        command = [sys.executable, script, str(text), str(vocabulary), str(out), "{}"]
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
        known = len(list(out.glob(f"{STATE_FOLDER}/unit-*.json")))
        while child.poll() is None and len(list(out.glob(f"{STATE_FOLDER}/unit-*.json"))) <= known:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() != 0
        if (out / "manifest.json").exists():
            break
        with pytest.raises(ShardError, match=r"an unfinished corpus, no manifest\.json\. Run the same vlb build-corp"):
            CorpusFolder.open(out)
    assert kills
    build(text, vocabulary, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_processes_that_die_before_they_begin_end_the_build(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    large = tmp_path / "vocab.txt"
    large.write_text(vocabulary.read_text() + "".join(f"word{number}\n" for number in range(20_000)))
    # Without a guard around its call, a script is run again by each process that it starts, and fails there.
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom small_text import make_corpus\n"
        "source, words, out = map(Path, sys.argv[1:])\nmake_corpus([source], words, out, workers=2).run()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(text), str(large), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "a process that tokenises died (exit code 1)" in done.stderr


def test_a_finished_corpus_is_left_alone(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    assert build(text, vocabulary, tmp_path / "out").built > 0
    before = {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "out").iterdir()}
    assert build(text, vocabulary, tmp_path / "out").built == 0
    assert {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "out").iterdir()} == before


def test_a_special_token_written_in_a_text_is_text(vocabulary: Path) -> None:
    tokenizer = load_tokenizer(vocabulary)
    assert not set(tokenizer.encode(["the [MASK] [SEP] sea"]).ids.tolist()) & {
        tokenizer.special_ids.mask,
        tokenizer.special_ids.sep,
    }


def test_gathered_runs_are_the_slices_of_all_tokens_and_wrap_around(
    vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    build(text, vocabulary, tmp_path / "out")
    corpus = CorpusFolder.open(tmp_path / "out")
    assert corpus.num_files > 3
    files = [corpus.file(number) for number in range(corpus.num_files)]
    ids = np.concatenate([file.ids for file in files])
    words = np.concatenate([file.starts_word(0, file.num_tokens) for file in files])
    rng = np.random.default_rng(0)
    starts = rng.integers(0, corpus.num_tokens, 50)
    stops = starts + rng.integers(0, 700, 50)
    runs = corpus.gather(starts, stops)
    wanted = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)]) % corpus.num_tokens
    np.testing.assert_array_equal(runs.ids, ids[wanted])
    np.testing.assert_array_equal(runs.starts_word, words[wanted])
    np.testing.assert_array_equal(np.diff(runs.cu_lengths), stops - starts)


def run_cli(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return int(stop.value.code or 0), out, err


def test_the_command_prints_the_facts_and_answers_trouble_with_one_sentence(
    capfd: pytest.CaptureFixture[str], vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    command = ["build-corpus", text, "--tokenizer", vocabulary, "--out", tmp_path / "out", "--shard-size", "4K"]
    code, out, _ = run_cli(capfd, *command, "--workers", 1, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["documents"] == len(documents_of(text.read_bytes().decode()))
    code, out, _ = run_cli(capfd, *command)
    assert code == 0
    assert f"{facts['tokens']:,} (" in out
    for wrong, exit_code, words in (
        (
            ["build-corpus", tmp_path / "no", "--tokenizer", vocabulary, "--out", tmp_path / "x"],
            1,
            "no such file or fo",
        ),
        (["build-corpus", text, "--tokenizer", tmp_path / "no.txt", "--out", tmp_path / "x"], 1, "tokenizer"),
        ([*command, "--shard-size", "many"], 2, "write it as 8M or 64MiB"),
        ([*command, "--document", "page"], 2, "blank-line"),
        ([*command, "--shard-size", "1"], 1, "unit_bytes is 1; it must be from 1024"),
    ):
        code, out, err = run_cli(capfd, *wrong)
        assert (code, out) == (exit_code, "")
        assert words in err


def test_real_novels_give_the_tokens_of_whole_documents(tmp_path: Path) -> None:
    tokenizer = real_data("vocab", "tokenizer.json")
    novel = real_data("text", "novels", "Doyle_Hound_1902.txt")
    result = build(novel, tokenizer, tmp_path / "out", unit_bytes=1 << 16)
    documents = documents_of(novel.read_bytes().decode("utf-8-sig"))
    assert result.built > 4
    assert documents_in(tmp_path / "out") == tokenised_whole(documents, tokenizer)
