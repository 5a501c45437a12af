"""`vlb build-shards` and `vlb inspect-shard` as a person runs them: exit codes, words on stdout and stderr."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from build_world import make_world
from PIL import Image
from real_data import real_data
from run_vlb import Answer
from small_models import save_resnet, save_yolos
from source_inputs import sample_files, write_coco, write_tar

from vlbert_data.shards.folder import ShardFolder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_yolos(root / "yolos")
    save_resnet(root / "resnet")
    return root


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path / "photos", 9)


@pytest.fixture
def options(models: Path) -> list[str]:
    return ["--detector", "annotations:source", "--describer", f"hf:{models / 'resnet'}", "--workers", "0"]


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
def test_the_main_command_works_on_real_photos(
    vlb: Callable[..., Answer], tmp_path: Path, models: Path, container: str
) -> None:
    captions = json.loads(real_data("coco", "captions.json").read_text())
    captions["images"] = captions["images"][:6]
    wanted = {image["id"] for image in captions["images"]}
    captions["annotations"] = [entry for entry in captions["annotations"] if entry["image_id"] in wanted]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    out = tmp_path / "coco"
    built = vlb(
        *("build-shards", tmp_path / "captions.json", "--images", real_data("coco", "images")),
        *("--detector", f"annotations:{real_data('coco', 'instances.json')}", "--describer", f"hf:{models / 'resnet'}"),
        *("--out", out, "--container", container, "--shard-size", 4, "--workers", 1),
    )
    assert built.code == 0, built.err
    facts = json.loads(vlb("inspect-shard", out, "--json").out)
    assert (facts["container"], facts["num_images"], facts["num_shards"]) == (container, 6, 2)
    assert facts["num_captions"] == len(captions["annotations"])
    assert facts["feature_dim"] == 16
    assert len(facts["label_space"]["class_names"]) == 80
    assert vlb("inspect-shard", out, "--verify").out.startswith(f"{out}: sound")
    record = vlb("inspect-shard", out, "--record", captions["images"][0]["id"])
    assert f"{captions['images'][0]['width']} x {captions['images'][0]['height']} pixels" in record.out


def test_tars_with_any_detector(vlb: Callable[..., Answer], tmp_path: Path, models: Path) -> None:
    write_tar(tmp_path / "a-0.tar", sample_files(["k1", "k2"]))
    write_tar(tmp_path / "a-1.tar", sample_files(["k3"]))
    out = tmp_path / "out"
    built = vlb(
        *("build-shards", f"{tmp_path}/a-*.tar", "--detector", f"hf:{models / 'yolos'}"),
        *("--describer", f"hf:{models / 'resnet'}:2", "--out", out, "--thumbnails", "--min-rois", 5, "--max-rois", 7),
        *("--masked-views", 2, "--label-topk", 2, "--score-threshold", 0.5, "--nms", 0.9, "--batch-size", 2),
        *("--workers", 0),
    )
    assert built.code == 0, built.err
    folder = ShardFolder.open(out)
    record = folder.read(2)
    assert (record.image_id, record.label_topk, record.num_rois <= 7) == ("a-1/k3", 2, True)
    assert record.masked_views is not None and record.masked_views.chosen.shape[0] == 2
    assert record.thumbnail is not None
    selection = folder.manifest.detector["selection"]
    assert selection == {
        "score_threshold": 0.5, "nms_iou": 0.9, "min_rois": 5, "max_rois": 7, "label_topk": 2
    }  # fmt: skip


def test_every_odd_image_is_a_record_or_a_reject(vlb: Callable[..., Answer], tmp_path: Path, models: Path) -> None:
    folder = real_data("odd_images")
    names = [entry["file"] for entry in json.loads((folder / "manifest.json").read_text())]
    lines = [json.dumps({"image": name, "caption": name}) for name in names]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    command = ["build-shards", tmp_path / "odd.jsonl", "--images", folder, "--detector", f"hf:{models / 'yolos'}"]
    command += ["--describer", f"hf:{models / 'resnet'}", "--out", tmp_path / "out", "--workers", 1]
    refused = vlb(*command)
    assert refused.code == 1
    assert "12 of 72 inputs were rejected; --max-rejects allows 0.05" in refused.err
    assert "undecodable image" in refused.out + refused.err
    accepted = vlb(*command, "--max-rejects", 0.4)
    assert accepted.code == 0, accepted.err
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    folder_out = ShardFolder.open(tmp_path / "out")
    kept = {folder_out.captions(i)[0] for i in range(folder_out.manifest.num_images)}
    lost = {str(reject["where"]).removeprefix(f"{folder}/") for reject in rejects}
    assert kept | lost == set(names)
    assert not kept & lost


def test_the_same_command_again_says_what_is_there(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    command = ("build-shards", world, *options, "--out", tmp_path / "out", "--shard-size", 4)
    assert "(3 built now)" in vlb(*command).out
    assert "(0 built now)" in vlb(*command).out


def test_parts_are_built_by_several_and_finished_by_the_last(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    command = ("build-shards", world, *options, "--out", tmp_path / "out", "--shard-size", 4)
    first = vlb(*command, "--part", "1/2")
    assert "2 shards built; 1 of other parts are still missing" in first.out + first.err
    unfinished = vlb("inspect-shard", tmp_path / "out")
    assert unfinished.code == 1
    assert "manifest.json" in unfinished.err
    assert "(1 built now)" in vlb(*command, "--part", "2/2").out


def test_another_configuration_on_the_same_folder_is_refused(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    command = ("build-shards", world, *options, "--out", tmp_path / "out", "--shard-size", 4)
    vlb(*command)
    refused = vlb(*command, "--max-rois", 3)
    assert refused.code == 1
    assert "max_rois" in refused.err
    assert "100" in refused.err
    assert "3" in refused.err


def test_a_config_file_reaches_rarer_settings_and_options_overrule_it(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("short_side_px = 64\nshard_size = 2\n")
    command = ("build-shards", world, *options, "--out", tmp_path / "out", "--config", tmp_path / "c.toml")
    assert vlb(*command, "--shard-size", 5).code == 0
    manifest = ShardFolder.open(tmp_path / "out").manifest
    assert manifest.describer["preprocessing"]["short_side_px"] == 64
    assert len(manifest.shards) == 2
    (tmp_path / "c.toml").write_text("short_side = 64\n")
    wrong = vlb(*command)
    assert wrong.code == 1
    assert f"{tmp_path / 'c.toml'}, with the options beside it: there is no setting 'short_side'. " in wrong.err
    assert "Did you mean short_side_px?" in wrong.err


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--container", "zip"], 2, "'zip' is not one of 'lmdb', 'hdf5'"),
        (["--part", "3/2"], 2, "3/2"),
        (["--shard-size", "0"], 1, "shard_size is 0; it must be from 1"),
        (["--min-rois", "9", "--max-rois", "3"], 1, "min_rois is 9, more than max_rois, 3"),
        (["--detector", "magic"], 1, "no such detector. There are annotations:FILE.json"),
        (["--describer", "hf:/none/at/all"], 1, "/none/at/all: not a folder"),
        (["--images", "/none/at/all"], 1, "/none/at/all"),
        (["--device", "quantum"], 1, "--device quantum: cannot be used here"),
        (["--format", "zip"], 1, "there is no input format 'zip'"),
        (["--config", "/none.toml"], 1, "/none.toml: cannot be read"),
        (["--colour"], 2, "No such option"),
        (["--thumbnails", "captions.json"], 2, "no number of pixels. Write --thumbnails behind it"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_an_exit_code(
    vlb: Callable[..., Answer],
    world: Path,
    options: list[str],
    tmp_path: Path,
    change: list[str],
    code: int,
    words: str,
) -> None:
    answer = vlb("build-shards", world, *options, "--out", tmp_path / "out", *change)
    assert answer.code == code
    assert words in answer.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_input_is_told(vlb: Callable[..., Answer], options: list[str], tmp_path: Path) -> None:
    answer = vlb("build-shards", tmp_path / "none.json", *options, "--out", tmp_path / "out")
    assert answer.code == 1
    assert f"{tmp_path}/none.json" in answer.err


def test_a_folder_that_cannot_be_written_is_told(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    answer = vlb("build-shards", world, *options, "--out", tmp_path / "file" / "out")
    assert answer.code == 1
    assert str(tmp_path / "file") in answer.err


def test_an_image_without_roi_is_kept_with_its_whole_image(
    vlb: Callable[..., Answer], options: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.png")
    lines = [
        {"image": "a.png", "caption": "red", "boxes": [[0, 0, 9, 9]], "labels": ["x"]},
        {"image": "b.png", "caption": "blue"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert vlb("build-shards", tmp_path / "t.jsonl", *options, "--out", tmp_path / "out").code == 0
    record = ShardFolder.open(tmp_path / "out").read(1)
    assert record.num_rois == 0
    assert record.image_feature.astype(float).any()


def test_verify_names_the_damaged_file_and_image(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vlb("build-shards", world, *options, "--out", out)
    shard = out / "shard-00000.lmdb"
    data = bytearray(shard.read_bytes())
    position = data.find(b"2 things")
    assert position > 0
    data[position] ^= 1
    shard.write_bytes(data)
    answer = vlb("inspect-shard", out, "--verify")
    assert answer.code == 1
    assert "shard-00000.lmdb" in answer.out
    assert "image" in answer.out


def test_inspecting_what_is_no_shard_is_told(vlb: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    for path in (tmp_path / "x.txt", tmp_path / "none", tmp_path):
        answer = vlb("inspect-shard", path)
        assert answer.code == 1
        assert str(path) in answer.err


def test_a_single_shard_file_can_be_inspected(
    vlb: Callable[..., Answer], world: Path, options: list[str], tmp_path: Path
) -> None:
    vlb("build-shards", world, *options, "--out", tmp_path / "out")
    shutil.copy(tmp_path / "out" / "shard-00000.lmdb", tmp_path / "alone.lmdb")
    facts = json.loads(vlb("inspect-shard", tmp_path / "alone.lmdb", "--json").out)
    assert facts["num_images"] == 9


def test_missing_images_are_rejects_with_their_path(
    vlb: Callable[..., Answer], options: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "1.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]
    table = write_coco(tmp_path / "captions.json", images, [(1, "one"), (2, "two")])
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]})
    )
    detector = ["--detector", f"annotations:{tmp_path / 'instances.json'}", *options[2:]]
    answer = vlb("build-shards", table, "--images", tmp_path, *detector, "--out", tmp_path / "o", "--max-rejects", 1)
    assert answer.code == 0, answer.err
    (reject,) = map(json.loads, (tmp_path / "o" / "rejects.jsonl").read_text().splitlines())
    assert reject["where"] == str(tmp_path / "2.jpg")
    assert reject["reason"] == "image not found"
