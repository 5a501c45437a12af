"""The README's commands, run as they stand: its ```sh blocks, in order, in a folder where what they name is there.

Models and files are small stand-ins under the names that the README gives them. Every `vlb pretrain` takes two steps
(or two more), and `vlbert-base` is as small as the stand-in checkpoint. The first block names make's targets, which
take minutes; what they call is tested elsewhere.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from foreign_files import lxmert_row, make_detections, write_captions, write_rows
from safetensors.torch import load_file
from small_models import save_bert

from cli.main import main
from vlbert_data.tour.world import MODELS, WorldSize, make_world

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TWO_STEPS = ("run.steps=2", "run.device=cpu", "data.caption_batch=4", "data.text_batch=4", "run.tensorboard=false")
SMALL_BASE = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.intermediate_size=64",
    "optim.warmup_steps=1",
)
GOLDEN_WORDS = 120


def commands(language: str) -> list[list[str]]:
    """Return the words of every command in the README's blocks of a language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def make_stand_ins(folder: Path) -> None:
    make_world(folder / "world", WorldSize(train_images=12, validation_images=1, documents=6))
    (folder / "world/train/photos").rename(folder / "train2017")
    shutil.copytree(folder / "world/texts", folder / "books")
    records = [json.loads(line) for line in (folder / "world/train/captions.jsonl").read_text().splitlines()]
    images = [{"id": number, "file_name": Path(r["image"]).name} for number, r in enumerate(records)]
    texts = [{"image_id": number, "caption": text} for number, r in enumerate(records) for text in r["captions"]]
    annotations = [{"id": number, **text} for number, text in enumerate(texts)]
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    shutil.copytree(MODELS / "detector", folder / "facebook/detr-resnet-50")
    shutil.copytree(MODELS / "describer", folder / "microsoft/resnet-50")
    save_bert(folder / "bert-base-uncased", vocab_size=GOLDEN_WORDS)
    words = (folder / "world/vocab.txt").read_text().splitlines()[:GOLDEN_WORDS]
    (folder / "bert-base-uncased/vocab.txt").write_text("\n".join(words) + "\n")
    found = [make_detections(number) for number in range(8)]
    write_rows(folder / "train2014_obj36.tsv", [lxmert_row(one) for one in found])
    write_captions(folder / "captions_train2014.json", found)
    torch.save(load_file(ROOT / "tests/golden/vlbert/model.safetensors"), folder / "vl-bert-base-prec.model")


def test_every_shell_command_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = []
    for program, *arguments in commands("sh"):
        assert program == "vlb", f"{program}: only vlb's commands are run here"
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *extra(arguments)])
        said = capsys.readouterr()
        assert not stop.value.code, f"{shlex.join(arguments)}: {said.err}"
        ran.append(arguments[0])
    assert set(ran) == {
        "build-shards",
        "inspect-shard",
        "build-corpus",
        "pretrain",
        "evaluate",
        "import-features",
        "convert-checkpoint",
    }
    for name in (
        "coco.html",
        "guesses.html",
        "runs/tiny/checkpoints",
        "runs/base/checkpoints",
        "runs/more/checkpoints",
    ):
        assert (tmp_path / name).exists(), name
    assert (tmp_path / "runs/tiny/checkpoints/step-00000004").exists()


def extra(arguments: list[str]) -> list[str]:
    """Return what keeps a command small; of two --set of one setting, the later one holds."""
    if arguments[0] == "convert-checkpoint":
        return ["--heads", "4"]
    if arguments[0] != "pretrain":
        return []
    if "--resume" in arguments:
        return ["--set", "run.steps=4"]
    settings = [*TWO_STEPS, *(SMALL_BASE if "vlbert-base" in arguments else ())]
    return [word for setting in settings for word in ("--set", setting)]


def test_makes_targets_are_there() -> None:
    (block,) = re.findall(r"^```\n(make .*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    targets = [line.split()[1] for line in block.splitlines()]
    assert targets == ["tour", "test"]
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(targets) <= set(rules)


def test_tests_that_are_named_as_proof_exist() -> None:
    named = re.findall(r"`python -m pytest (tests/\w+\.py)(?: -k (\w+))?`", README)
    assert len(named) >= 3
    for path, keyword in named:
        tests = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert any(keyword in test for test in tests), f"{path} -k {keyword}"


def test_the_file_tree_names_what_is_there() -> None:
    tree = README[README.index("vlbert_data/     making") :]
    tree = tree[: tree.index("```")]
    parent = ROOT
    for line in tree.splitlines():
        name = line.split()[0].rstrip("/")
        folder = parent / name if line.startswith("  ") else ROOT / name
        parent = parent if line.startswith("  ") else folder
        assert folder.is_dir(), line
