"""What `vlb inspect-shard` prints of texts that were not meant to be printed, and of files that kill their reader."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vlbert_data.errors import ShardError
from vlbert_data.report import Images
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.synthetic import FakeShards, make_records, write_shards
from vlbert_data.types import LabelSpace

ODD = "[bold]red[/nothing] \x1b[2Jgone :smile: \x9bend"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose folder, class names, detector and captions are made to upset a terminal."""
    fake = FakeShards(num_images=3, num_classes=2, label_topk=1, has_background=False)
    folder = tmp_path_factory.mktemp("odd") / os.fsdecode(b"caf\xe9 [bold]")
    folder.mkdir()
    space = LabelSpace(name="odd", class_names=(ODD, ODD + " 2"))
    facts = FolderFacts(
        container="lmdb",
        schema=replace(fake.schema(), label_space=space),
        detector={"name": ODD},
        describer={},
        source={"images": str(folder)},
        build={},
    )
    records = [replace(record, captions=(ODD,)) for record in make_records(fake)]
    write_records(folder, records, facts)
    return folder


def inspect(*args: object) -> str:
    command = [sys.executable, "-m", "cli.main", "inspect-shard", *map(str, args)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.stderr == b""
    return done.stdout.decode()


def test_text_is_printed_as_it_is_without_controls(odd: Path) -> None:
    shown = "[bold]red[/nothing] \\x1b[2Jgone :smile: \\x9bend"
    facts, record = inspect(odd), inspect(odd, "--record", "00000000")
    for printed in (facts, record):
        assert shown in printed
        assert not {character for character in printed if ord(character) < 32 or 127 <= ord(character) < 160} - {"\n"}
    assert "\ncaf" not in facts
    assert "caf\\udce9 [bold]" in facts


def test_piped_lines_are_never_wrapped_nor_padded(odd: Path) -> None:
    lines = inspect(odd).splitlines()
    assert all(line == line.rstrip() for line in lines if not line.startswith("  "))
    assert any(line.startswith("most frequent of ") and line.endswith("(sample of 3 images)") for line in lines)


def test_json_holds_what_is_no_text_as_escapes(odd: Path) -> None:
    assert json.loads(inspect(odd, "--json"))["source"]["images"] == str(odd)


def test_a_file_that_would_kill_its_reader_is_a_sentence(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "s", num_images=200, feature_dim=4, num_rois=(1, 2)) / "shard-00000.lmdb"
    data = bytearray(path.read_bytes())
    # The child pages that the tree's root names, moved far beyond the end of the file.
    for page in range(2, len(data) // 4096):
        if data[page * 4096 + 10] & 1:
            data[page * 4096 + 1024 : (page + 1) * 4096] = b"\xee" * 3072
    path.write_bytes(data)
    with pytest.raises(ShardError):
        Images.open(path)
