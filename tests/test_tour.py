"""The tour: its world is what it says, its models find what is there, and all its commands run."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.backbone import BackboneDescriber, ImageSize
from vlbert_data.detect.huggingface import HuggingFaceDetector
from vlbert_data.detect.open import selection_rule
from vlbert_data.errors import ConfigError
from vlbert_data.tokenizer import load_tokenizer
from vlbert_data.tour.measure import average_precision, measure_detector
from vlbert_data.tour.proof import claims
from vlbert_data.tour.scenes import CLASS_NAMES, COLOURS, SHAPES, Scene, Thing, make_scene
from vlbert_data.tour.sentences import WORD_GROUPS, make_captions, make_document, vocabulary
from vlbert_data.tour.world import BUILD_SETTINGS, MODELS, MOST_THINGS, WorldSize, make_world

SEED = 1_000_003  # of scenes that the models have not learned from
LITTLE = WorldSize(train_images=4, validation_images=2, documents=3)
NUMBERS = {"two": 2, "three": 3, "four": 4}
PHRASE = re.compile(r"a (small|large) (\w+) (\w+)")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(SEED, number) for number in range(120)]


def test_a_scene_is_the_same_whenever_it_is_made_and_others_differ(scenes: list[Scene]) -> None:
    again = make_scene(SEED, 5)
    assert np.array_equal(again.pixels, scenes[5].pixels)
    assert again.things == scenes[5].things
    assert not np.array_equal(scenes[5].pixels, scenes[6].pixels)
    assert not np.array_equal(make_scene(SEED + 1, 5).pixels, again.pixels)


def test_things_of_a_scene_differ_in_colour_and_shape_and_lie_apart_in_the_picture(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 1 <= len(scene.things) <= 4
        assert len({thing.colour for thing in scene.things}) == len(scene.things)
        assert len({thing.shape for thing in scene.things}) == len(scene.things)
        cover = np.zeros(scene.pixels.shape[:2], int)
        for thing in scene.things:
            x0, y0, x1, y1 = (int(edge) for edge in thing.box)
            assert 0 <= x0 < x1 <= scene.pixels.shape[1] and 0 <= y0 < y1 <= scene.pixels.shape[0]
            cover[y0:y1, x0:x1] += 1
        assert cover.max() == 1


def test_what_is_in_a_box_has_the_colour_that_is_said(scenes: list[Scene]) -> None:
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], float)
    right = total = 0
    for scene in scenes:
        for thing in scene.things:
            x0, y0, x1, y1 = (int(edge) for edge in thing.box)
            if thing.shape == "ring":
                continue  # its middle shows the ground
            middle = scene.pixels[(y0 + y1) // 2 - 2 : (y0 + y1) // 2 + 3, (x0 + x1) // 2 - 2 : (x0 + x1) // 2 + 3]
            nearest = int(np.abs(middle.mean((0, 1)) - palette).sum(1).argmin())
            right, total = right + (names[nearest] == thing.colour), total + 1
    assert right / total > 0.97


def test_captions_say_only_what_is_so(scenes: list[Scene]) -> None:
    for number, scene in enumerate(scenes):
        for caption in make_captions(scene, np.random.default_rng(number)):
            named = [find(scene, *words) for words in PHRASE.findall(caption)]
            assert named, caption
            for word, count in NUMBERS.items():
                assert f" {word} " not in caption or len(scene.things) == count
            if " left of " in caption:
                assert named[0].centre[0] < named[1].centre[0]
            if " right of " in caption:
                assert named[0].centre[0] > named[1].centre[0]
            if " above " in caption:
                assert named[0].centre[1] < named[1].centre[1]
            if " below " in caption:
                assert named[0].centre[1] > named[1].centre[1]


def find(scene: Scene, size: str, colour: str, shape: str) -> Thing:
    (found,) = [thing for thing in scene.things if (thing.size, thing.colour, thing.shape) == (size, colour, shape)]
    return found


def test_every_word_is_one_token(scenes: list[Scene], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    texts = [caption for n, s in enumerate(scenes) for caption in make_captions(s, np.random.default_rng(n))]
    texts += [make_document(np.random.default_rng(number)) for number in range(1000, 1100)]
    texts += [" ".join(words) for words in WORD_GROUPS.values()]
    tokens = tokenizer.encode(texts)
    assert tokenizer.special_ids.unk not in tokens.ids
    assert tokens.starts_word.all()


def test_a_world_is_whole_the_same_again_and_not_made_twice(tmp_path: Path) -> None:
    assert make_world(tmp_path / "a", LITTLE)
    assert make_world(tmp_path / "b", LITTLE)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    records = [json.loads(line) for line in (tmp_path / "a/train/captions.jsonl").read_text().splitlines()]
    assert len(records) == LITTLE.train_images
    with Image.open(tmp_path / "a/train" / records[3]["image"]) as photo:
        difference = np.abs(np.asarray(photo, float) - make_scene(LITTLE.seed, 3, most=MOST_THINGS).pixels)
    assert difference.mean() < 6  # what JPEG leaves
    assert {"models", "build.toml", "vocab.txt", "words.txt"} <= {path.name for path in (tmp_path / "a").iterdir()}
    before = (tmp_path / "a/world.json").stat().st_mtime_ns
    assert not make_world(tmp_path / "a", LITTLE)
    assert (tmp_path / "a/world.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="another size or seed"):
        make_world(tmp_path / "a", WorldSize(train_images=5, validation_images=2, documents=3))


def test_the_detector_is_small_and_as_good_as_its_page_says(scenes: list[Scene]) -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 3_000_000
    settings = BuildConfig().updated(tomllib.loads(BUILD_SETTINGS))
    detector = HuggingFaceDetector(str(MODELS / "detector"), selection_rule(settings), batch_size=8)
    found = measure_detector(detector, scenes)
    page = (MODELS / "measured.md").read_text()
    for name, value in (("mAP50", found.map50), ("precision", found.precision), ("recall", found.recall)):
        stated = float(re.search(rf"{name}[^|]*\| ([0-9.]+)", page)[1])
        assert stated > 0.9
        assert value == pytest.approx(stated, abs=0.04), name


def test_average_precision_is_the_area_under_the_curve() -> None:
    # By hand: hits at ranks 1, 3, 4 of 4 things; precisions 1, 2/3, 3/4, the last two raised to 3/4.
    scores, right = np.array([0.2, 0.9, 0.5, 0.7]), np.array([True, True, True, False])
    assert average_precision(scores, right, 4) == pytest.approx((1 + 0.75 + 0.75) / 4)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 4) == 0.0


def test_features_tell_colour_and_shape_by_the_nearest_mean(scenes: list[Scene]) -> None:
    describer = BackboneDescriber(str(MODELS / "describer"), ImageSize(short_side_px=96, long_side_px=128))
    boxes = [np.array([thing.box for thing in scene.things], np.float32) for scene in scenes]
    described = describer.describe([scene.pixels for scene in scenes], boxes)
    features = np.concatenate([found.features for found in described])
    for words in (list(COLOURS), list(SHAPES)):
        truth = np.array([words.index(t.colour if t.colour in words else t.shape) for s in scenes for t in s.things])
        half = len(truth) // 2
        means = np.stack([features[:half][truth[:half] == number].mean(0) for number in range(len(words))])
        nearest = np.square(features[half:, None] - means).sum(-1).argmin(1)
        assert (nearest == truth[half:]).mean() > 0.9


def test_claims_hold_at_their_limits_and_not_below() -> None:
    def evaluation(right: float, other: float, rois: float) -> dict[str, object]:
        group = {"name": "all", "with_image": right, "with_other_image": other, "chance": 0.3, "asked": 10}
        return {"named_words": [group], "rois": {"accuracy": rois}, "roi_baseline": 0.05}

    assert [claim.holds for claim in claims(evaluation(0.91, 0.39, 0.16))] == [True, True, True]
    assert [claim.holds for claim in claims(evaluation(0.89, 0.41, 0.14))] == [False, False, False]


@pytest.mark.timeout(600)  # seven processes, each of which imports torch
def test_a_small_tour_shows_and_runs_every_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tour"
    text = tour(capfd, "--small", "--out", str(out))
    commands = re.findall(r"^\$ vlb ([\w-]+)", text, re.MULTILINE)
    assert commands == ["build-shards", "build-shards", "inspect-shard", "build-corpus", "pretrain", "evaluate"]
    for name in ("shards.html", "guesses.html", "evaluation.json", "run/metrics.jsonl"):
        assert (out / name).stat().st_size > 500
        assert name in text
    assert set(json.loads((out / "shards/train/manifest.json").read_text())["label_space"]["class_names"]) >= set(
        CLASS_NAMES
    )


def tour(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["tour", *arguments])
    out, err = capfd.readouterr()
    assert not stop.value.code, err
    return out


def test_fresh_removes_tours_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("love")
    with pytest.raises(SystemExit) as stop:
        main(["tour", "--fresh", "--out", str(tmp_path / "letters")])
    assert stop.value.code == 1
    assert "was not made by a tour" in capsys.readouterr().err
    assert (tmp_path / "letters" / "dear.txt").exists()
