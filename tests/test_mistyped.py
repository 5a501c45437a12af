"""Paths that were not meant: told at once, with what was found, what was expected and what is near."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run_vlb import Answer
from tiny_run import Data, make_data

from vlbert_data.nearby import folders_inside, is_no_hub_name, where_it_ends


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def here(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with shards, a corpus, a vocabulary and folders that are none of these."""
    for path in (data.shards, data.corpus):
        shutil.copytree(path, tmp_path / path.name)
    shutil.copyfile(data.vocabulary, tmp_path / "vocab.txt")
    (tmp_path / "shard").mkdir()
    (tmp_path / "nested" / "cc-train").parent.mkdir()
    shutil.copytree(data.shards, tmp_path / "nested" / "cc-train")
    monkeypatch.chdir(tmp_path)
    return tmp_path


BUILT = "expected a folder that vlb build-shards or vlb import-features has finished."
TOKENISED = "expected a folder that vlb build-corpus has finished."
HUB = "--tokenizer nobody/has-it"  # to be asked of a hub, which must not happen
WRONG = (
    (
        f"--shards shrads --corpus corpus {HUB}",
        f"{{}}shrads: there is no such folder; {BUILT} Did you mean {{}}shards?",
    ),
    (f"--shards Shards --corpus corpus {HUB}", "Did you mean {}shards?"),
    (f"--shards shard --corpus corpus {HUB}", "{}shard: no shards, no manifest.json. Give a folder that"),
    (f"--shards nested {HUB}", "{}nested: no shards, no manifest.json. Did you mean {}nested/cc-train?"),
    (f"--shards nested/cc-tran {HUB}", "Did you mean {}nested/cc-train?"),
    (f"--shards nestd/cc-train {HUB}", "Did you mean {}nested/cc-train?"),
    (f"--shards nested/other/cc {HUB}", "{}nested exists, but it holds no 'other'."),
    (f"--shards corpus {HUB}", f"{{}}corpus: a corpus; {BUILT} A corpus goes with --corpus."),
    (f"--shards shards/shard-00000.lmdb {HUB}", f"shard-00000.lmdb: a file; {BUILT} Give the folder."),
    (
        f"--shards shards --corpus corpis {HUB}",
        f"{{}}corpis: there is no such folder; {TOKENISED} Did you mean {{}}corpus?",
    ),
    (f"--shards shards --corpus . {HUB}", "no corpus, no manifest.json. Did you mean"),
    (f"--shards shards --corpus shards {HUB}", f"{{}}shards: shards of images; {TOKENISED} Shards go with --shards."),
)
WRONG_OF_A_RUN = (
    (f"--shards shards --val-shards shrads {HUB}", "{}shrads: there is no such folder"),
    (
        "--shards shards --tokenizer ./vocb.txt",
        "tokenizer ./vocb.txt: there is no such file or folder. Did you mean vocab",
    ),
    ("--shards shards --tokenizer no/such/one", "there is no such file or folder. This folder holds no 'no'."),
    ("--shards shards --tokenizer zzz.json", "Give --tokenizer a tokenizer.json, a vocab.txt, a folder or a name on"),
    (f"--shards shards --init-from ./wights {HUB}", "./wights: not a folder: there is no such path. Give a model's"),
)


@pytest.mark.parametrize(("options", "words"), [*WRONG, *WRONG_OF_A_RUN])
def test_a_mistyped_path_of_a_new_run_is_told_before_any_hub_is_asked_and_leaves_nothing(
    vlb: Callable[..., Answer], here: Path, options: str, words: str
) -> None:
    answer = vlb("pretrain", *options.split(), "--out", "run")
    assert (answer.code, answer.out) == (1, "")
    assert words.format(f"{here}/", f"{here}/") in answer.err
    assert answer.err.count("\n") == 1
    assert not (here / "run").exists()


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_a_mistyped_path_of_an_evaluation_is_told_before_the_run_is_read(
    vlb: Callable[..., Answer], here: Path, options: str, words: str
) -> None:
    answer = vlb("evaluate", "run", *options.split())
    assert (answer.code, answer.out) == (1, "")
    assert words.format("", "") in answer.err


def test_paths_beside_an_evaluation_are_told_at_once(vlb: Callable[..., Answer], here: Path) -> None:
    for options, words in (
        ("--words vocab.text", "vocab.text: no such file or folder. Did you mean vocab.txt?"),
        ("--html x.html --images nestd", "--images nestd: there is no such folder. Did you mean nested?"),
        ("--tokenizer ./vocb.txt", "Did you mean vocab.txt?"),
    ):
        answer = vlb("evaluate", "run", "--shards", "shards", *options.split())
        assert (answer.code, words in answer.err) == (1, True), answer.err


def test_a_mistyped_run_is_told_with_the_run_that_is_there(vlb: Callable[..., Answer], here: Path) -> None:
    (here / "runs" / "base").mkdir(parents=True)
    (here / "runs" / "base" / "config.json").write_text("{}")
    for run, words in (
        ("runs/bse", "runs/bse: there is no such folder. Did you mean runs/base?"),
        ("runs", "runs: has no config.json, so it is no run folder. Did you mean runs/base?"),
    ):
        for command in (["pretrain", "--resume", run], ["evaluate", run, "--shards", "shards"]):
            answer = vlb(*command)
            assert (answer.code, words in answer.err) == (1, True), answer.err


def test_a_corpus_that_the_usual_tokenizer_cannot_have_made_asks_for_its_own(
    vlb: Callable[..., Answer], here: Path
) -> None:
    answer = vlb("pretrain", "--shards", "shards", "--corpus", "corpus", "--out", "run")
    assert answer.code == 1
    assert f"{here}/corpus: made with a tokenizer of " in answer.err
    assert "bert-base-uncased, which is taken where none is given, has 30,522 tokens." in answer.err
    assert "Give the one that made it with --tokenizer." in answer.err


def test_a_tokenizer_that_cannot_be_had_is_told_with_the_one_that_the_corpus_needs(
    vlb: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "broken.json").write_text("{}")
    answer = vlb("pretrain", "--shards", "shards", "--corpus", "corpus", "--tokenizer", "broken.json", "--out", "run")
    assert answer.code == 1
    assert "JSON, but not of a tokenizer" in answer.err
    assert f"{here}/corpus was made with a tokenizer of " in answer.err


def test_a_mistyped_folder_is_told_without_torch(here: Path) -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        "for command in (['pretrain', '--out', 'r'], ['evaluate', 'r']):\n"
        "    try:\n        main([*command, '--shards', 'shrads'])\n"
        "    except SystemExit as stop:\n        assert stop.code == 1\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers'}))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=here,
        env={"PYTHONPATH": str(root)},
    )
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize(
    "command", ["inspect-shard", "inspect-shard --verify", "build-corpus --tokenizer vocab.txt --out o"]
)
def test_other_commands_name_what_is_near_too(vlb: Callable[..., Answer], here: Path, command: str) -> None:
    name, *options = command.split()
    answer = vlb(name, "shrads", *options)
    assert (answer.code, "Did you mean shards?" in answer.err) == (1, True), answer.err


def test_formats_and_files_that_an_option_names_are_told_with_what_is_near(
    vlb: Callable[..., Answer], here: Path
) -> None:
    (here / "instances.json").write_text("{}")
    (here / "captions.json").write_text('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}')
    for command, words in (
        ("import-features vocab.txt --format lxmrt --out o", "lxmert-arrow. Did you mean lxmert?"),
        ("import-features vocab.txt --captions vocb.txt --out o", "Did you mean vocab.txt?"),
        ("build-shards captions.json --format coc --detector annotations:x --out o", "Did you mean coco?"),
        ("build-shards captions.json --detector annotations:instanses.json --out o", "Did you mean instances.json?"),
    ):
        answer = vlb(*command.split())
        assert (answer.code, words in answer.err) == (1, True), answer.err


def test_of_near_names_the_one_that_fits_is_proposed(tmp_path: Path) -> None:
    for name in ("cc-train1", "cc-train2"):
        (tmp_path / name).mkdir()
    (tmp_path / "cc-train2" / "mark").touch()
    path = tmp_path / "cc-train"
    assert where_it_ends(path, fits=lambda found: (found / "mark").exists()) == f"Did you mean {path}2?"
    assert where_it_ends(path, fits=lambda found: False).startswith("Did you mean ")
    assert folders_inside(tmp_path, lambda found: True) == f"Did you mean {path}1 or {path}2?"
    assert folders_inside(tmp_path, lambda found: False) == ""


def test_a_link_that_leads_nowhere_is_told_and_never_proposed(vlb: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "features.tsv").symlink_to("gone.tsv")
    answer = vlb("import-features", tmp_path / "features.tsv", "--out", tmp_path / "out")
    assert answer.err == f"Error: {tmp_path}/features.tsv: a link to gone.tsv, where nothing is.\n"
    assert where_it_ends(tmp_path / "featurs.tsv") == ""


@pytest.mark.parametrize(
    ("name", "is_path"),
    [("bert", False), ("google/bert", False), ("./bert", True), ("/bert", True), ("~/bert", True), ("a/b/c", True)],
)
def test_hub_names_are_told_from_paths(name: str, is_path: bool) -> None:
    assert is_no_hub_name(name) is is_path
