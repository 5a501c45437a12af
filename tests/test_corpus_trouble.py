"""Corpora: input that is broken, refused or changed, full disks and damage."""

import fcntl
import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_world import build, documents_in, rejects_of, tokenised_whole
from limits import files_end_at
from small_text import make_corpus, make_text

from vlbert_data.corpus import STATE_FOLDER, CorpusFolder
from vlbert_data.corpus_build import TooManyRejectsError
from vlbert_data.errors import ConfigError, ShardError, VlbError
from vlbert_data.tokenizer import load_tokenizer


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
