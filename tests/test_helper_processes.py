"""The processes that read HDF5 and Arrow files: one that dies or stalls costs one answer."""

import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest

from tests import foreign_writers as write
from tests.binary_cases import CASES
from tests.foreign_writers import make_images
from tests.hostile import IMAGES, check_outcomes
from vlbert_data.errors import VlbError
from vlbert_data.importers import child as child_module
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.child import Child, ChildRefusedError
from vlbert_data.importers.hdf5_inputs import read_datasets
from vlbert_data.importers.open import open_importer
from vlbert_data.importers.plain_arrays import RefusedDataError


def killing_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> Child:
    """Return a helper whose process does `body` when it is asked about a file whose name has "bad" in it."""
    package = tmp_path / "fake_child.py"
    package.write_text(
        "import os, signal, time\nimport numpy as np\nfrom vlbert_data.importers.child_side import serve\n"
        f"def answer(request):\n    if 'bad' in request['path']:\n        {body}\n"
        "    return {'fine': True}, [np.arange(3)]\nserve(answer, (OSError,))\n"
    )
    monkeypatch.setitem(child_module.MODULES, "fake", "fake_child")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Child("fake", seconds_an_answer=2.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"ended the process that tried \(SIGSEGV\)"),
        ("os.kill(os.getpid(), signal.SIGBUS)", r"ended the process that tried \(SIGBUS\)"),
        ("os._exit(3)", "ended the process that tried"),
        ("raise ZeroDivisionError", "ended the process that tried"),
        ("time.sleep(60)", "no answer within 2 s"),
        ("print('noise' * 100, flush=True)", "gave no sense"),
        ("np.ones(2**40)", "ended the process that tried"),
    ],
)
def test_a_reader_that_dies_or_stalls_costs_one_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
) -> None:
    with killing_child(monkeypatch, tmp_path, body) as child:
        assert child.ask(Path("good"), {})[1][0].tolist() == [0, 1, 2]
        with pytest.raises(ChildRefusedError, match=f"^bad: .*{message}"):
            child.ask(Path("bad"), {})
        assert child.ask(Path("good"), {})[0] == {"fine": True}


def test_a_helper_that_does_not_start_ends_the_import_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(child_module.MODULES, "absent", "no.such.module")
    with Child("absent") as child:
        for _ in range(2):
            with pytest.raises(VlbError, match="the process that reads absent files did not start") as caught:
                child.ask(Path("x"), {})
            assert not isinstance(caught.value, RefusedDataError), "no input is to blame"


@pytest.mark.parametrize("name", ["VL-T5 HDF5", "UNITER npz", "HF Arrow", "tensorpack 13, msgpack", "MILVLG npz"])
def test_threads_read_the_same_as_one_after_another(tmp_path: Path, name: str) -> None:
    images = make_images(24, num_rois=10, prefix="" if name == "HF Arrow" else "COCO_")
    path = (
        CASES[name].write(tmp_path, images)
        if name != "HF Arrow"
        else write.write_arrow(tmp_path / "a.arrow", images, kept=10)
    )
    importer = open_importer([str(path)])
    expected = [out.features.tobytes() for out in importer.read(0, 24) if isinstance(out, RawRecord)]
    copy = pickle.loads(pickle.dumps(importer))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: next(iter(copy.read(number, number + 1))), range(24)))
    assert [out.features.tobytes() for out in found if isinstance(out, RawRecord)] == expected


def test_a_survey_may_take_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with killing_child(monkeypatch, tmp_path, "time.sleep(2.5)") as child:
        assert child.ask(Path("bad"), {}, seconds=60)[0] == {"fine": True}


def test_a_file_that_always_kills_its_reader_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with killing_child(monkeypatch, tmp_path, "os._exit(1)") as child:
        for _ in range(child_module.MAX_DEATHS):
            with pytest.raises(ChildRefusedError, match="ended the process"):
                child.ask(Path("bad"), {})
        with pytest.raises(ChildRefusedError, match=r"ended 10 processes; it is not tried again\."):
            child.ask(Path("bad"), {})


def test_no_helper_outlives_its_parent(tmp_path: Path) -> None:
    path = write.write_groups(tmp_path / "a.h5", IMAGES)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vlbert_data.importers.child import Child\n"
        f"child = Child('hdf5')\nchild.ask(Path({str(path)!r}), {{'op': 'names', 'name': '/'}})\n"
        "print(child._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    helper = Path(f"/proc/{int(done.stdout)}/cmdline")
    for _ in range(100):
        if not helper.exists() or b"hdf5_child" not in helper.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("the helper process is still there")


def test_a_helper_that_hangs_ends_even_if_nobody_is_left_to_end_it() -> None:
    code = (
        "import time\nfrom vlbert_data.importers import child_side\nchild_side.LONGEST_ANSWER_S = 1\n"
        "child_side.serve(lambda request: ({}, []) if request == 1 else time.sleep(60), ())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=b"1\n2\n", capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGALRM
    assert done.stdout.count(b'"arrays"') == 2  # that it is ready, and the first answer


def test_hdf5_is_never_opened_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write.write_groups(tmp_path / "a.h5", IMAGES)
    monkeypatch.setattr(h5py, "File", None)
    assert check_outcomes(open_importer([str(path)])) == (3, 0)
    with pytest.raises(ChildRefusedError, match="there is no nothing in the file"):
        read_datasets(path, ["nothing"])
