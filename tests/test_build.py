"""A build, whole, interrupted, in parts, and refused."""

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from build_world import build, make_build, make_world

from vlbert_data.build.config import LIMITS, BuildConfig, parse_part, read_toml
from vlbert_data.build.run import Progress
from vlbert_data.build.state import STATE_FOLDER, BuildState
from vlbert_data.errors import ConfigError, ShardError, VlbError
from vlbert_data.images import LARGEST_MAX_PIXELS
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.verify import verify

NUM_IMAGES = 14


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), NUM_IMAGES, broken=[5])


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert build(table, out, max_rejects=1).built == 4
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def run_child(table: Path, out: Path, **settings: object) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("build_world.py")
    arguments = [sys.executable, str(script), str(table), str(out), json.dumps({"max_rejects": 1, **settings})]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())})


def test_every_input_ends_as_a_record_or_a_reject(whole: Path, table: Path) -> None:
    folder = ShardFolder.open(whole)
    rejects = [json.loads(line) for line in (whole / "rejects.jsonl").read_text().splitlines()]
    assert len(folder) + len(rejects) == NUM_IMAGES
    assert [reject["number"] for reject in rejects] == [5]
    assert rejects[0]["where"] == str(table.parent / "0005.png")
    assert sum(folder.manifest.rejects.values()) == 1
    assert verify(whole).sound
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    del lines[5]
    for image, line in enumerate(lines):
        record = folder.read(image)
        np.testing.assert_array_equal(record.rois.boxes, np.array(line["boxes"], np.float32).reshape(-1, 4))
        assert record.captions == (line["caption"],)
        assert record.masked_views is not None
        assert record.masked_views.chosen.shape == (2, record.num_rois)
        assert record.thumbnail is not None


def test_worker_processes_and_batches_change_nothing(table: Path, whole: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "out", max_rejects=1, workers=2, batch_size=3)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_finished_build_is_left_alone(table: Path, whole: Path) -> None:
    before = {entry.name: entry.stat().st_mtime_ns for entry in whole.iterdir()}
    assert build(table, whole, max_rejects=1).built == 0
    assert {entry.name: entry.stat().st_mtime_ns for entry in whole.iterdir()} == before


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
def test_a_build_killed_again_and_again_ends_as_one_never_interrupted(
    table: Path, tmp_path: Path, container: str
) -> None:
    build(table, tmp_path / "whole", max_rejects=1, container=container, shard_size=1)
    out = tmp_path / "out"
    shuffled = random.Random(container)
    kills = 0
    for _ in range(40):
        child = run_child(table, out, container=container, shard_size=1, workers=1)
        known = len(list(out.glob(f"{STATE_FOLDER}/shard-*.json")))
        while child.poll() is None and len(list(out.glob(f"{STATE_FOLDER}/shard-*.json"))) <= known:
            time.sleep(0.005)
        time.sleep(shuffled.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        finished = child.wait() == 0
        child.communicate()
        kills += not finished
        if (out / "manifest.json").exists():
            break
    assert kills
    build(table, out, max_rejects=1, container=container, shard_size=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_helper_processes_do_not_outlive_a_killed_build(table: Path, tmp_path: Path) -> None:
    child = run_child(table, tmp_path / "out", workers=2, shard_size=1)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    if not children.exists():
        child.kill()
        child.communicate()
        pytest.skip("this system does not list the children of a process")
    helpers: set[str] = set()
    while child.poll() is None and len(helpers) < 3:
        helpers |= set(children.read_text().split())
        time.sleep(0.005)
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 20
    alive = helpers
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = {pid for pid in helpers if is_running(pid)}
    assert not alive


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_parts_together_give_what_one_build_gives(table: Path, whole: Path, tmp_path: Path) -> None:
    first = make_build(table, tmp_path / "out", max_rejects=1).run((1, 2))
    assert first.manifest is None
    assert (first.built, first.missing) == (2, 2)
    with pytest.raises(ShardError, match=r"an unfinished build \(2 shards so far\)"):
        ShardFolder.open(tmp_path / "out")
    second = make_build(table, tmp_path / "out", max_rejects=1).run((0, 2))
    assert second.manifest is not None
    assert contents(tmp_path / "out") == contents(whole)


def test_a_second_build_of_the_same_folder_is_refused(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_build(table, out, max_rejects=1).run((1, 4))
    with (out / STATE_FOLDER / "part-1-of-1.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(VlbError, match=r"another process is at work.*--part i/n"):
            build(table, out, max_rejects=1)
    # A process that holds the lock of shard 2, as one of other parts does.
    holder = "import fcntl, sys; s = open(sys.argv[1], 'w'); fcntl.lockf(s, fcntl.LOCK_EX, 1, 2); print(1); input()"
    command = [sys.executable, "-u", "-c", holder, str(out / STATE_FOLDER / "shards.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(VlbError, match="at work on shard-00002"):
            build(table, out, max_rejects=1)
    assert build(table, out, max_rejects=1).manifest is not None


def test_a_part_of_more_shards_than_files_may_be_open_is_built(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = BuildState(tmp_path, {}, 5000, "lmdb")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        state.begin()
        with state.lock_shards(state.pending()):
            assert state.pending() == list(range(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_parts_begun_at_the_same_moment_agree_and_one_of_them_finishes(
    table: Path, whole: Path, tmp_path: Path
) -> None:
    parts = [run_child(table, tmp_path / "out", part=[part, 4]) for part in range(4)]
    for child in parts:
        assert child.communicate()[1] == b""
        assert child.returncode == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_a_part_that_asks_while_another_removes_the_state_fails_never(tmp_path: Path) -> None:
    state = BuildState(tmp_path / "out", {}, 3, "lmdb")
    outcome = json.dumps({"entry": {"file": "shard-00000.lmdb", "bytes": 1}})
    stop = threading.Event()

    def come_and_go() -> None:
        """Make a state and remove it, over and over, as if each time another part finished."""
        while not stop.is_set():
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                (tmp_path / "out" / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
                for shard in range(3):
                    (tmp_path / "made").write_text(outcome)
                    (tmp_path / "made").rename(tmp_path / "out" / STATE_FOLDER / f"shard-{shard:05d}.json")
            state.clear()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(3000):
            assert state.pending() == [0, 1, 2]
            with state.lock("part-1-of-1"):
                pass
    finally:
        stop.set()
        other.join()


def test_a_part_that_comes_when_another_has_just_finished_builds_nothing(
    table: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = make_build(table, tmp_path / "out", max_rejects=1)
    begin = late.state.begin

    def begin_and_be_overtaken() -> None:
        assert begin() is None
        assert build(table, tmp_path / "out", max_rejects=1).built == 4

    monkeypatch.setattr(late.state, "begin", begin_and_be_overtaken)
    result = late.run()
    assert (result.built, result.missing) == (0, 0)
    assert result.manifest is not None
    assert contents(tmp_path / "out") == contents(whole)


def test_a_finished_folder_is_not_retried(table: Path, whole: Path) -> None:
    again = make_build(table, whole, max_rejects=1)
    again.retry_rejected = True
    with pytest.raises(ConfigError, match=r"finished, with 1 rejects accepted.*another --out"):
        again.run()


@pytest.mark.parametrize("name", ["shard-00001.json", "shard-00001.parquet"])
def test_damaged_state_of_a_build_names_the_file_to_remove(table: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    make_build(table, out, max_rejects=1).run((1, 2))
    path = out / STATE_FOLDER / name
    path.write_bytes(b"{}" if name.endswith("json") else path.read_bytes()[:-9])
    with pytest.raises(ShardError, match=r"shard-00001.json: .* Remove this file"):
        build(table, out, max_rejects=1)
    (out / STATE_FOLDER / "shard-00001.json").unlink()
    assert build(table, out, max_rejects=1).manifest is not None


def test_other_settings_on_the_same_folder_are_refused_by_name(table: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"begun with other settings: --shard-size was 4, is now 5\. Give the same again"
    ):
        build(table, whole, max_rejects=1, shard_size=5)
    make_build(table, tmp_path / "out").run((0, 2))
    with pytest.raises(ConfigError, match=r"describer\.scale was 1\.0, is now 2\.0"):
        build(table, tmp_path / "out", scale=2.0)
    other = make_world(tmp_path / "world", 13)
    with pytest.raises(ConfigError, match="source was"):
        build(other, tmp_path / "out")


def test_a_folder_of_other_things_is_not_touched(table: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds files that no vlb build made.*--out"):
        build(table, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}
    with pytest.raises(ConfigError, match=r"thesis.tex: a file; --out must be a new folder"):
        build(table, tmp_path / "thesis.tex")


def test_an_empty_input_is_refused(tmp_path: Path) -> None:
    from vlbert_data.build.state import check_shard_count

    with pytest.raises(ShardError, match="holds no image"):
        check_shard_count(0, 10)
    with pytest.raises(ShardError, match="Raise --shard-size"):
        check_shard_count(1_000_000, 1)


def test_progress_counts_every_input_once(table: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    make_build(table, tmp_path / "out", max_rejects=1).run((0, 2))
    rest = make_build(table, tmp_path / "out", max_rejects=1)
    rest.on_progress = seen.append
    rest.run()
    assert [progress.done_inputs for progress in seen] == list(range(9, NUM_IMAGES + 1))
    assert {progress.total_inputs for progress in seen} == {NUM_IMAGES}
    assert seen[-1].rejects == 1


def test_settings_are_refused_by_name(tmp_path: Path) -> None:
    most_pixels = {name: high for name, _, high in LIMITS}["max_pixels"]
    assert most_pixels == LARGEST_MAX_PIXELS
    with pytest.raises(ConfigError, match=r"no setting 'shard_sise'. Did you mean shard_size"):
        BuildConfig().updated({"shard_sise": 3})
    with pytest.raises(ConfigError, match=r"shard_size is 'ten'; it must be int"):
        BuildConfig().updated({"shard_size": "ten"})
    with pytest.raises(ConfigError, match=r"score_threshold is 1.5; it must be from 0 to 1"):
        BuildConfig(score_threshold=1.5)
    with pytest.raises(ConfigError, match="more than max_rois"):
        BuildConfig(min_rois=200)
    (tmp_path / "bad.toml").write_text("shard_size = ")
    with pytest.raises(ConfigError, match="not TOML"):
        read_toml(tmp_path / "bad.toml")
    for text in ("0/2", "3/2", "x/y", "2"):
        with pytest.raises(ConfigError, match="i/n"):
            parse_part(text)
    assert parse_part("2/8") == (1, 8)
