"""`vlb pretrain` and `vlb evaluate` as a person runs them: options, words, exit codes, signals, torchrun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_vlb import Answer
from small_text import WORDS
from tiny_run import Data, lines_of, make_data

from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import write_shards
from vlbert_train.checkpoint import list_checkpoints, load_state
from vlbert_train.config import preset
from vlbert_train.distributed import World
from vlbert_train.evaluate import EvaluationData, measure, open_run

# So that a process finds the modules that this one finds.
SEARCH = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(spawn(["pretrain", *data.options(), "--out", str(out)]))
    return out


def spawn(args: list[str], *, ranks: int = 1) -> subprocess.Popen[str]:
    """Start `vlb` in a process of its own, or in several under torchrun."""
    front = [sys.executable]
    if ranks > 1:
        front += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*front, "-m", "cli.main", *args],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": SEARCH,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> str:
    """Wait for a child that must succeed and return its stdout."""
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return out


def wait_for_lines(out: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    path = out / "metrics.jsonl"
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") >= number):
        time.sleep(0.005)


def test_a_run_is_made_resumed_and_continued_with_more_steps(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "try"
    answer = vlb("pretrain", *data.options("run.steps=4"), "--out", run, "--device", "cpu")
    assert (answer.code, answer.out) == (0, f"4 steps done: {run / 'checkpoints' / 'step-00000004'}\n")
    assert "step 4/4 | loss " in answer.err
    assert "validation | loss" in answer.err
    assert "0:00 left" in answer.err
    answer = vlb("pretrain", "--resume", run, "--set", "run.steps=6")
    assert answer.out == f"6 steps done: {run / 'checkpoints' / 'step-00000006'}\n"
    assert load_state(run / "checkpoints" / "step-00000006").config["data"]["caption_batch"] == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], "has all 12 steps that run.steps asks for"),
        (["run.steps=12"], "has all 12 steps that run.steps asks for"),
        (["run.steps=7"], "has 12 steps already, and run.steps is 7"),
    ],
)
def test_a_run_that_has_its_steps_says_that_nothing_was_trained_and_how_to_go_on(
    vlb: Callable[..., Answer], whole: Path, changes: list[str], words: str
) -> None:
    before = {path: path.read_bytes() for path in (whole / "config.json", whole / "metrics.jsonl")}
    answer = vlb("pretrain", "--resume", whole, *[part for change in changes for part in ("--set", change)])
    assert answer.code == 0, answer.err
    assert answer.out == f"Nothing was trained: {whole / 'checkpoints' / 'step-00000012'} {words}.\n"
    assert answer.err == f"Go on with: vlb pretrain --resume {whole} --set run.steps=24\n"
    assert before == {path: path.read_bytes() for path in before}


def test_presets_files_options_and_set_are_taken_in_this_order(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        "[run]\nsteps = 2\nseed = 3\ntensorboard = true\n[data]\nval_fraction = 0.5\n"
        "[model]\nhidden_size = 16\nintermediate_size = 24\n"
    )
    options = ["--shards", data.shards, "--corpus", data.corpus, "--tokenizer", data.vocabulary]
    run = tmp_path / "run"
    answer = vlb(
        *("pretrain", *options, "--preset", "tiny", "--config", tmp_path / "mine.toml", "--out", run),
        *("--val-fraction", "0.25", "--set", "run.seed=4", "--set", "data.caption_batch=4"),
    )
    assert answer.code == 0, answer.err
    config = json.loads((run / "config.json").read_text())
    assert config["run"]["steps"] == 2
    assert config["run"]["seed"] == 4
    assert config["data"]["val_fraction"] == 0.25
    assert config["data"]["caption_batch"] == 4
    assert config["data"]["text_batch"] == preset("tiny").data.text_batch
    assert config["data"]["shards"] == [str(data.shards)]
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_where_and_exits_with_0(number: signal.Signals, data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = spawn(["pretrain", *data.options("run.steps=100000", "run.checkpoint_every=50000"), "--out", str(run)])
    wait_for_lines(run, 3)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out == ""
    ((step, path),) = list_checkpoints(run / "checkpoints").items()
    assert f"Stopped after step {step} of 100000: saved {path}" in err
    assert f"Go on with: vlb pretrain --resume {run}" in err
    assert lines_of(run)[-1]["step"] == step


def test_two_processes_follow_the_losses_of_one_and_one_goes_on_where_two_stopped(
    whole: Path, data: Data, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Dropout differs between ranks; without it, what is left is rounding.
    settings = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0", "run.validate_every=4"]
    alone = spawn(["pretrain", *data.options(*settings), "--out", str(tmp_path / "alone")])
    two = spawn(
        ["pretrain", *data.options(*settings, "run.steps=8", "optim.decay_steps=12"), "--out", str(run)], ranks=2
    )
    finish(alone)
    assert finish(two) == f"8 steps done: {run / 'checkpoints' / 'step-00000008'}\n"
    finish(spawn(["pretrain", "--resume", str(run), "--set", "run.steps=12"]))
    found, expected = lines_of(run), lines_of(tmp_path / "alone")
    kept = [line for line in found if line["kind"] == "train" or line["step"] % 4 == 0]
    assert [(line["kind"], line["step"]) for line in kept] == [(line["kind"], line["step"]) for line in expected]
    for ours, theirs in zip(kept, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"kind"}:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), (ours["step"], name)


def test_a_signal_to_torchrun_saves_once_and_ends_all(data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = ("run.steps=100000", "run.checkpoint_every=50000", "run.log_every=1")
    child = spawn(["pretrain", *data.options(*changes), "--out", str(run)], ranks=2)
    wait_for_lines(run, 3)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=90)
    ((step, path),) = list_checkpoints(run / "checkpoints").items()
    assert f"Stopped after step {step} of 100000: saved {path}" in err
    assert load_state(path).world_size == 2


USAGE = (
    (["pretrain", "--preset", "tiny"], "Give --out FOLDER for a new run, or --resume RUN"),
    (["pretrain", "--out", "x", "--resume", "y"], "Give --out FOLDER for a new run, or --resume RUN"),
    (["pretrain", "--resume", "y", "--preset", "tiny"], "--preset is for new runs"),
    (["pretrain", "--resume", "y", "--config", "z.toml"], "--config is for new runs"),
    (["pretrain", "--out", "x", "--device", "tpu"], "tpu"),
)


@pytest.mark.parametrize(("args", "words"), USAGE)
def test_wrong_usage_exits_with_2(vlb: Callable[..., Answer], args: list[str], words: str) -> None:
    answer = vlb(*args)
    assert answer.code == 2
    assert words in answer.err


REFUSED = (
    (["--set", "run.stepz=3"], r"there is no setting run.stepz. Did you mean run.steps?"),
    (["--set", "optim.peak_lr=fast"], "optim.peak_lr is 'fast'; it must be a number"),
    (["--set", "masking.leakage=overlaps"], "masking.leakage is 'overlaps'; it must be one of"),
    (["--set", "run.steps=0"], "run.steps is 0; it must be from 1"),
    (["--preset", "huge"], "there is no preset 'huge'; there are tiny, tour, vlbert-base, vlbert-large"),
    (["--val-fraction", "2"], "data.val_fraction is 2.0; it must be from 0.0 to 0.9"),
    (["--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
)


@pytest.mark.parametrize(("args", "words"), REFUSED)
def test_a_setting_that_cannot_be_is_refused_by_name_and_leaves_nothing(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path, args: list[str], words: str
) -> None:
    options = ["--shards", data.shards, "--tokenizer", data.vocabulary]
    answer = vlb("pretrain", *options, "--out", tmp_path / "run", *args)
    assert (answer.code, answer.out) == (1, "")
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_sentence_and_the_run_folder_stays_usable(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(data.shards, unfinished)
    (unfinished / "manifest.json").unlink()
    small = write_shards(tmp_path / "narrow", num_images=6, feature_dim=8, num_classes=6)
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    run = tmp_path / "run"
    for changed, expected in (
        (["--shards", tmp_path / "nowhere"], "nowhere: there is no such folder"),
        (["--shards", tmp_path / "empty"], "no shards, no manifest.json"),
        (["--shards", unfinished], "an unfinished build (3 shards so far), no manifest.json"),
        (["--shards", data.shards, "--shards", small], "feature"),
        (["--shards", data.shards, "--tokenizer", words], "made with another tokenizer"),
        (["--shards", data.shards, "--tokenizer", tmp_path / "no.txt"], "no.txt: there is no such file"),
        (["--shards", data.shards, "--corpus", tmp_path / "empty"], "no corpus, no manifest.json"),
        (["--shards", data.shards, "--init-from", tmp_path / "empty"], "empty"),
    ):
        options = [str(part) for part in data.options("run.steps=1")[2:]]
        answer = vlb("pretrain", *options, *changed, "--out", run)
        assert answer.code == 1, (changed, answer)
        assert expected in answer.err
        assert answer.err.startswith("Error: ")
        assert answer.err.count("\n") == 1, answer.err
    assert vlb("pretrain", *data.options("run.steps=1"), "--out", run).code == 0
    answer = vlb("pretrain", *data.options(), "--out", run)
    assert (answer.code, "holds a run already. Go on with it by vlb pretrain --resume" in answer.err) == (1, True)


def test_shards_of_features_only_train_words_and_say_so_unless_roi_classes_are_required(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path
) -> None:
    plain = write_shards(tmp_path / "plain", num_images=12, feature_dim=12, label_topk=0)
    options = ["--shards", plain, *[str(part) for part in data.options("run.steps=3")[2:]]]
    answer = vlb("pretrain", *options, "--out", tmp_path / "run", "--set", "masking.roi_targets=required")
    assert answer.code == 1
    assert f"{plain}: stores features only, no classes of RoIs, which masking.roi_targets=required needs" in answer.err
    answer = vlb("pretrain", *options, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "features only, no classes of RoIs: words are learned" in answer.err
    last = lines_of(tmp_path / "run")[-1]
    assert "words_with_image_accuracy" in last
    assert "rois_accuracy" not in last
    answer = vlb("evaluate", tmp_path / "run", "--shards", plain, "--device", "cpu", "--json")
    assert json.loads(answer.out)["rois"]["count"] == 0


def test_weights_to_start_from_are_accounted_for_and_change_the_start(
    vlb: Callable[..., Answer], whole: Path, data: Data, tmp_path: Path
) -> None:
    weights = whole / "checkpoints" / "step-00000012"
    answer = vlb("pretrain", *data.options("run.steps=1"), "--init-from", weights, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert f"{weights}: 57 tensors taken." in answer.err
    assert lines_of(tmp_path / "run")[0]["loss"] < lines_of(whole)[0]["loss"]


def test_a_damaged_shard_is_named_and_the_run_goes_on_once_it_is_mended(
    vlb: Callable[..., Answer], data: Data, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(data.shards, shards)
    name = ShardFolder.open(shards).manifest.shards[1].file
    whole = (shards / name).read_bytes()
    (shards / name).write_bytes(whole[:-4096])
    run = tmp_path / "run"
    options = [str(part) for part in data.options("run.steps=6")[2:]]
    answer = vlb("pretrain", "--shards", shards, *options, "--out", run)
    assert answer.code == 1
    assert name in answer.err
    assert answer.err.count("\n") == 1
    (shards / name).write_bytes(whole)
    go_on = ["--resume", run] if (run / "config.json").exists() else ["--shards", shards, *options, "--out", run]
    assert vlb("pretrain", *go_on).code == 0
    assert torch.tensor(lines_of(run)[-1]["loss"]).isfinite()


def test_evaluate_prints_what_a_run_has_learned(vlb: Callable[..., Answer], whole: Path, data: Data) -> None:
    answer = vlb("evaluate", whole, "--shards", data.shards, "--corpus", data.corpus, "--json", "--device", "cpu")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["step"] == 12
    assert facts["caption_examples"] == 48
    for task in ("words_with_image", "words_of_text", "rois", "words_with_other_image"):
        assert 0 <= facts[task]["accuracy"] <= 1
        assert facts[task]["count"] > 0
    assert facts["visual_gain"] == pytest.approx(
        facts["words_with_image"]["accuracy"] - facts["words_with_other_image"]["accuracy"]
    )
    answer = vlb("evaluate", whole / "checkpoints" / "step-00000004", "--shards", data.shards, "--device", "cpu")
    assert answer.code == 0, answer.err
    for words in ("masked words with image", "visual gain", "most frequent class", "step 4"):
        assert words in answer.out
    few = (
        "evaluate",
        whole,
        "--shards",
        data.shards,
        "--corpus",
        data.corpus,
        "--json",
        "--device",
        "cpu",
        "--limit",
        7,
    )
    fewer = json.loads(vlb(*few).out)
    assert (fewer["caption_examples"], fewer["text_examples"]) == (7, 7)
    assert fewer["words_of_text"]["count"] < facts["words_of_text"]["count"]
    assert fewer == json.loads(vlb(*few).out)
    answer = vlb("evaluate", whole.parent, "--shards", data.shards)
    assert (answer.code, "no run folder" in answer.err) == (1, True)


def test_evaluate_adds_up_independent_draws_of_masks(vlb: Callable[..., Answer], whole: Path, data: Data) -> None:
    few = ("evaluate", whole, "--shards", data.shards, "--corpus", data.corpus, "--device", "cpu", "--limit", 7)
    once = json.loads(vlb(*few, "--json").out)
    opened = open_run(whole, EvaluationData(shards=(str(data.shards),), corpus=str(data.corpus), limit=7))
    alone = [
        measure(
            opened.forward, opened.supply.validation_batches(draw=draw), World(), num_labels=opened.supply.num_labels
        )
        for draw in range(3)
    ]
    thrice = json.loads(vlb(*few, "--json", "--draws", 3).out)
    assert (once["draws"], thrice["draws"], thrice["caption_examples"]) == (1, 3, 7)
    for task in ("words_with_image", "words_of_text", "rois"):
        assert once[task]["count"] == alone[0].task(task).count
        assert thrice[task]["count"] == sum(found.task(task).count for found in alone)
        right = sum((found.task(task).accuracy or 0) * found.task(task).count for found in alone)
        assert thrice[task]["accuracy"] * thrice[task]["count"] == pytest.approx(right)
    assert thrice["words_with_other_image"]["count"] == thrice["words_with_image"]["count"]
    assert "on 7 captions and 7 texts, 3 draws of masks" in vlb(*few, "--draws", 3).out


def test_evaluate_refuses_data_that_the_model_was_not_made_for(
    vlb: Callable[..., Answer], whole: Path, data: Data, tmp_path: Path
) -> None:
    narrow = write_shards(tmp_path / "narrow", num_images=6, feature_dim=8, num_classes=6)
    others = write_shards(tmp_path / "others", num_images=6, feature_dim=12, num_classes=7)
    for shards, words in ((narrow, "feature_dim was 12, is 8"), (others, "label_space was ")):
        answer = vlb("evaluate", whole, "--shards", shards, "--device", "cpu")
        assert answer.code == 1, answer
        assert words in answer.err
        assert answer.err.count("\n") == 1
