"""Text to corpora: the tokens of whole documents, in every container, interrupted, damaged and refused."""

import fcntl
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
from limits import files_end_at
from real_data import real_data
from small_text import documents_of, make_corpus, make_text, write_vocabulary

from cli.main import main
from vlbert_data import corpus_read
from vlbert_data.corpus import STATE_FOLDER, CorpusFolder
from vlbert_data.corpus_build import CorpusResult, Progress, TooManyRejectsError
from vlbert_data.errors import ConfigError, ShardError, VlbError
from vlbert_data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_bytes(make_text(1, 120).encode())
    return path


def build(source: Path, vocabulary: Path, out: Path, **settings: object) -> CorpusResult:
    return make_corpus([source], vocabulary, out, **settings).run()


def documents_in(folder: Path) -> list[list[int]]:
    """Return the ids of every document of a corpus."""
    corpus = CorpusFolder.open(folder)
    found = []
    for number in range(corpus.num_files):
        file = corpus.file(number)
        found += [file.ids[a:b].tolist() for a, b in zip(file.offsets, file.offsets[1:], strict=False)]
    return found


def tokenised_whole(documents: list[str], vocabulary: Path) -> list[list[int]]:
    runs = load_tokenizer(vocabulary).encode(documents)
    return [runs.ids[a:b].tolist() for a, b in zip(runs.cu_lengths, runs.cu_lengths[1:], strict=False)]


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def rejects_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


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


def test_broken_and_empty_input_is_rejected_with_its_place_and_the_rest_is_taken(
    vocabulary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"the sea\n\nold caf\xe9 town\nthe old\n\nthe town\n")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.txt").write_bytes(b" \n\t\n")
    (folder / "d.jsonl").write_bytes(
        b'{"text": "the captain"}\n{"text": 3}\n{"body": "x"}\n{"text": \n[1]\n{"text": "\\ud800"}\n{"text": ""}\n'
    )
    (folder / "e.txt.gz").write_bytes(gzip.compress(make_text(1, 300).encode())[:-900])
    (folder / "f.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"caption": ["x"]}), folder / "g.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "h.parquet")
    pq.write_table(pa.table({"text": pa.array([b"a sea", b"\xff", None], pa.binary())}), folder / "i.parquet")
    (folder / "j.txt").symlink_to(folder / "nowhere")
    (folder / "k.pdf").write_bytes(b"x")
    build(folder, vocabulary, tmp_path / "out", max_rejects=100, unit_bytes=1 << 20)
    found = {(reject["where"].removeprefix("texts/"), reject["reason"]) for reject in rejects_of(tmp_path / "out")}
    assert found == {
        ("a.txt at byte 9", "broken UTF-8"),
        ("b.txt", "empty file"),
        ("c.txt", "empty file"),
        ("d.jsonl at byte 24", "no text field"),
        ("d.jsonl at byte 36", "no text field"),
        ("d.jsonl at byte 50", "bad JSON"),
        ("d.jsonl at byte 60", "no text field"),
        ("d.jsonl at byte 64", "broken Unicode"),
        ("d.jsonl at byte 83", "empty text"),
        ("e.txt.gz", "file not readable"),
        ("f.parquet", "file not readable"),
        ("g.parquet", "no text field"),
        ("h.parquet", "no text field"),
        ("i.parquet at row 1", "broken UTF-8"),
        ("i.parquet at row 2", "empty text"),
        ("j.txt", "file not readable"),
    }
    whole = ["the sea", "the town", "the captain", "a sea"]
    taken = documents_in(tmp_path / "out")
    assert [ids for ids in tokenised_whole(whole, vocabulary) if ids in taken] == tokenised_whole(whole, vocabulary)
    manifest = CorpusFolder.open(tmp_path / "out").manifest
    assert manifest.rejects["no text field"] == 5
    assert manifest.source["skipped"] == {".pdf": 1}


def test_a_special_token_written_in_a_text_is_text(vocabulary: Path) -> None:
    tokenizer = load_tokenizer(vocabulary)
    assert not set(tokenizer.encode(["the [MASK] [SEP] sea"]).ids.tolist()) & {
        tokenizer.special_ids.mask,
        tokenizer.special_ids.sep,
    }


def test_too_many_rejects_fail_with_the_counts_and_a_higher_limit_goes_on(vocabulary: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"the sea\n\n\xff\n\nthe town\n\n\xff\n")
    with pytest.raises(TooManyRejectsError, match=r"2 of 4 documents were rejected, more than --max-rejects 0\.05"):
        build(source, vocabulary, tmp_path / "out")
    assert build(source, vocabulary, tmp_path / "out", max_rejects=2).manifest.num_documents == 2


def test_only_rejects_are_no_corpus(vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ShardError, match="not one document was taken, so there is no corpus"):
        build(tmp_path / "a.txt", vocabulary, tmp_path / "out", max_rejects=9)


def test_a_second_build_other_settings_and_changed_input_are_refused(vocabulary: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "novel.txt", tmp_path / "out"
    source.write_bytes(make_text(1, 40).encode())
    build(source, vocabulary, out)
    with pytest.raises(ConfigError, match=r"begun with other settings: --shard-size in bytes was \d+, is now 2048\."):
        build(source, vocabulary, out, unit_bytes=2048)
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="holds files that are no corpus"):
        build(source, vocabulary, out)
    begun = tmp_path / "begun"
    (begun / STATE_FOLDER).mkdir(parents=True)
    with (begun / STATE_FOLDER / "build.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(VlbError, match="another vlb build-corpus is at work on it"):
            build(source, vocabulary, begun)
    with files_end_at(100), pytest.raises(VlbError):
        build(source, vocabulary, begun)
    build_of = make_corpus([source], vocabulary, begun)
    build_of._planned()
    os.utime(source, (1, 1))
    with pytest.raises(ConfigError, match=r"novel\.txt was changed since this build began"):
        build(source, vocabulary, begun)


def test_a_full_disk_is_one_sentence_and_the_build_goes_on_later(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    build(text, vocabulary, tmp_path / "whole")
    # Worker processes inherit the limit; a unit's scratch files are larger than this.
    with files_end_at(4000), pytest.raises(VlbError, match="Finished corpus files are kept; make room"):
        build(text, vocabulary, tmp_path / "out", unit_bytes=4096)
    build(text, vocabulary, tmp_path / "out", unit_bytes=4096)
    assert documents_in(tmp_path / "out") == documents_in(tmp_path / "whole")


def test_a_damaged_corpus_is_named(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(text, vocabulary, out)
    path = out / "corpus-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ShardError, match=r"corpus-00001\.arrow: \d+ bytes; the manifest says \d+ bytes"):
        CorpusFolder.open(out).file(1)
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(ShardError, match=r"corpus-00001\.arrow: not what was written"):
        CorpusFolder.open(out).verify()
    path.unlink()
    with pytest.raises(ShardError, match=r"corpus-00001\.arrow: missing"):
        CorpusFolder.open(out).file(1)
    (out / "manifest.json").write_text((out / "manifest.json").read_text().replace('"kind": "corpus"', '"kind": "x"'))
    with pytest.raises(ShardError, match="not a corpus folder"):
        CorpusFolder.open(out)
    with pytest.raises(ShardError, match="there is no such folder"):
        CorpusFolder.open(tmp_path / "nowhere")


def test_another_tokenizer_is_refused_by_name(vocabulary: Path, text: Path, tmp_path: Path) -> None:
    build(text, vocabulary, tmp_path / "out")
    corpus = CorpusFolder.open(tmp_path / "out")
    corpus.require_tokenizer(load_tokenizer(vocabulary).fingerprint, "vocab.txt")
    with pytest.raises(
        ConfigError, match=r"made with another tokenizer \(fingerprint \w{12}\) than bert \(abcdefabcdef"
    ):
        corpus.require_tokenizer("abcdef" * 10, "bert")


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
