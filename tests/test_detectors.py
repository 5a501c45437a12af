"""Detectors: one contract for all, and what each of them promises beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import (
    LABELS,
    save_conditional_detr,
    save_deformable_detr,
    save_detr,
    save_resnet,
    save_rt_detr,
    save_table_transformer,
    save_yolos,
)

from vlbert_data.build.config import BuildConfig
from vlbert_data.detect.annotations import CocoAnnotations, SourceBoxes, class_names_of
from vlbert_data.detect.base import DecodedImage, Detector, SelectionRule
from vlbert_data.detect.huggingface import HuggingFaceDetector, class_distribution
from vlbert_data.detect.open import open_detector
from vlbert_data.detect.selection import select
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.jsonl import JsonlSource
from vlbert_data.types import ImageRois, LabelSpace, check_image_rois

RULE = SelectionRule(score_threshold=0.3, nms_iou=None, min_rois=3, max_rois=12, label_topk=3)


def image(width: int, height: int, *, number: int = 0, **facts: Any) -> DecodedImage:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage(**{"image_id": str(number), "file_name": f"{number}.jpg", "pixels": pixels, **facts})


def coco_file(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [
            {"id": 0, "file_name": "0.jpg", "width": 80, "height": 60},
            {"id": 7, "file_name": "seven.jpg", "width": 50, "height": 50},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"image_id": 0, "category_id": 3, "bbox": [10, 10, 20, 10], "iscrowd": 0},
            {"image_id": 0, "category_id": 18, "bbox": [5, 5, 70, 50.5], "iscrowd": 0},
            {"image_id": 0, "category_id": 18, "bbox": [0, 0, 40, 40], "iscrowd": 1},
            {"image_id": 0, "category_id": 18, "bbox": [20, 20, 0.5, 30], "iscrowd": 0},
        ],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_yolos(tmp_path_factory.mktemp("models") / "yolos")


@pytest.fixture(scope="module")
def deformable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_deformable_detr(tmp_path_factory.mktemp("models") / "deformable")


@pytest.fixture(params=["coco", "source", "softmax", "sigmoid"])
def detector(request: pytest.FixtureRequest, tmp_path: Path) -> Detector:
    if request.param == "coco":
        return CocoAnnotations(coco_file(tmp_path), max_rois=12)
    if request.param == "source":
        return SourceBoxes(["dog"], max_rois=12)
    name = "yolos" if request.param == "softmax" else "deformable"
    return HuggingFaceDetector(str(request.getfixturevalue(name)), RULE, batch_size=4)


@pytest.mark.parametrize("save", [save_detr, save_table_transformer, save_conditional_detr, save_rt_detr])
def test_every_family_proposes_the_boxes_of_its_own_processor(save: Callable[[Path], Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    folder = save(tmp_path / "model")
    rule = SelectionRule(score_threshold=0.0, nms_iou=None, min_rois=0, max_rois=20, label_topk=3)
    photo = image(60, 90, number=2)
    (rois,) = HuggingFaceDetector(str(folder), rule).detect([photo])
    assert rois.num_rois == 20
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        output = AutoModelForObjectDetection.from_pretrained(folder)(**processor(photo.pixels, return_tensors="pt"))
    theirs = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(90, 60)])[0]["boxes"]
    theirs = theirs.clamp(min=0).minimum(torch.tensor([60.0, 90.0, 60.0, 90.0]))  # one a (box, class) for sigmoids
    distance = (torch.from_numpy(rois.boxes)[:, None] - theirs[None]).abs().amax(dim=2).amin(dim=0)
    assert float(distance.max()) < 0.05


def photos() -> list[DecodedImage]:
    boxes = np.array([[1, 2, 30, 40], [0, 0, 90, 90]], np.float32)
    brought = {"boxes": boxes, "class_names": ("dog", "dog")}
    sizes = [(80, 60), (80, 60), (60, 90), (80, 60), (44, 200)]
    return [image(width, height, number=number, **brought) for number, (width, height) in enumerate(sizes)]


def test_every_detector_gives_sound_rois(detector: Detector) -> None:
    for photo, rois in zip(photos(), detector.detect(photos()), strict=True):
        height, width = photo.pixels.shape[:2]
        zeros = np.zeros((rois.num_rois, 1), np.float16)
        record = ImageRois(
            image_id="x",
            width_px=width,
            height_px=height,
            captions=("c",),
            rois=rois,
            features=zeros,
            image_feature=np.zeros(1, np.float16),
        )
        check_image_rois(record, label_space=detector.label_space)
        assert rois.label_ids.shape[1] == detector.label_topk
    json.dumps(detector.facts())


def test_rois_do_not_depend_on_the_other_images(detector: Detector) -> None:
    together = detector.detect(photos())
    alone = [detector.detect([photo])[0] for photo in reversed(photos())][::-1]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
        np.testing.assert_array_equal(one.label_ids, other.label_ids)


def test_annotations_become_one_hot_rois_and_the_rest_is_counted(tmp_path: Path) -> None:
    detector = CocoAnnotations(coco_file(tmp_path), max_rois=12)
    (rois,) = detector.detect([image(80, 60)])
    assert detector.label_space.class_names == ("car", "dog")  # by category id: 3, 18
    assert rois.boxes.tolist() == [[5, 5, 75, 55.5], [10, 10, 30, 20]]  # the larger first
    assert rois.label_ids.tolist() == [[1], [0]]
    assert rois.scores.tolist() == [1, 1]
    assert detector.counts() == {"crowd annotations": 1, "degenerate boxes": 1}


def test_images_are_found_by_name_then_by_id(tmp_path: Path) -> None:
    detector = CocoAnnotations(coco_file(tmp_path), max_rois=1)
    found = detector.detect(
        [image(80, 60, file_name="sub/0.jpg", image_id="any"), image(80, 60, file_name="", image_id="0")]
    )
    assert [rois.num_rois for rois in found] == [1, 1]
    assert detector.detect([image(9, 9, image_id="new", file_name="new.jpg")])[0].num_rois == 0
    assert detector.counts()["images without an entry in the annotations"] == 1
    assert detector.counts()["RoIs over max_rois"] == 2


def test_annotations_of_another_size_are_refused(tmp_path: Path) -> None:
    detector = CocoAnnotations(coco_file(tmp_path), max_rois=12)
    with pytest.raises(RecordRejectedError, match=r"60 x 80 pixels; instances.json says 80 x 60"):
        detector.detect([image(60, 80)])
    assert detector.counts() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "no list of annotations; a COCO instances file has images, annotations, categories"),
        ({"categories": [{"id": 1}]}, "a category without id or name"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "two categories share an id"),
        ({"annotations": [{"image_id": 0, "category_id": 5, "bbox": [1, 2, 3, 4]}]}, "not as COCO writes it"),
        ({"annotations": [{"image_id": 0, "category_id": 3, "bbox": [1, 2, 3]}]}, "not as COCO writes it"),
    ],
)
def test_a_wrong_annotations_file_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CocoAnnotations(coco_file(tmp_path, **changes), max_rois=1)


def test_unreadable_annotations_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        CocoAnnotations(tmp_path / "none.json", max_rois=1)
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ConfigError, match="not JSON"):
        CocoAnnotations(tmp_path / "cut.json", max_rois=1)


def test_class_names_come_from_the_records_themselves(tmp_path: Path) -> None:
    lines = [
        {"image": f"{n}.png", "caption": "c", "boxes": [[0, 0, 9, 9]], "labels": [name]} for n, name in enumerate("ba")
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    assert class_names_of(JsonlSource([table])) == ["a", "b"]
    table.write_text(json.dumps({"image": "0.png", "caption": "c"}))
    with pytest.raises(ConfigError, match="no record of the input brings boxes with labels"):
        class_names_of(JsonlSource([table]))


def test_boxes_of_an_unlisted_class_are_counted() -> None:
    detector = SourceBoxes(["dog"], max_rois=9)
    boxes = np.array([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32)
    (rois,) = detector.detect([image(20, 20, boxes=boxes, class_names=("cat", "dog"))])
    assert rois.boxes.tolist() == [[1, 1, 9, 9]]
    assert detector.counts() == {"boxes of a class that is not listed": 1}


def test_a_softmax_head_keeps_its_distribution() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_distribution(logits, num_classes=5), logits.softmax(-1))


def test_a_sigmoid_head_of_one_class_gives_the_sigmoid() -> None:
    logits = torch.linspace(-9, 9, 7)[:, None]
    probs = class_distribution(logits, num_classes=1)
    torch.testing.assert_close(probs[:, :1], logits.sigmoid())
    torch.testing.assert_close(probs.sum(-1), torch.ones(7))


def test_another_number_of_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 logits a box for 5 named classes; expected 5, or 6"):
        class_distribution(torch.zeros(1, 8), num_classes=5)


def test_huggingface_rois_are_the_models_own(yolos: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    photo = photos()[2]
    (rois,) = HuggingFaceDetector(str(yolos), RULE).detect([photo])
    processor = AutoImageProcessor.from_pretrained(yolos, backend="pil")
    with torch.inference_mode():
        output = AutoModelForObjectDetection.from_pretrained(yolos)(**processor(photo.pixels, return_tensors="pt"))
    size = [photo.pixels.shape[:2]]
    theirs = processor.post_process_object_detection(output, threshold=0.0, target_sizes=size)[0]
    best = theirs["scores"].argsort(descending=True)[: rois.num_rois]
    np.testing.assert_allclose(rois.scores, theirs["scores"][best], atol=1e-3)
    clipped = theirs["boxes"][best].clamp(min=0).minimum(torch.tensor([60.0, 90.0, 60.0, 90.0]))
    np.testing.assert_allclose(rois.boxes, clipped, atol=1e-2)
    foreground = np.where(rois.label_ids[:, 0] < len(LABELS), rois.label_ids[:, 0], rois.label_ids[:, 1])
    assert foreground.tolist() == theirs["labels"][best].tolist()


def test_an_image_that_the_models_processor_cannot_prepare_is_one_reject(yolos: Path) -> None:
    with pytest.raises(RecordRejectedError, match="31 x 200 pixels") as caught:
        HuggingFaceDetector(str(yolos), RULE).detect([image(31, 200)])
    assert caught.value.reason == "image does not suit the detector"


def test_the_background_is_the_last_class(yolos: Path) -> None:
    space = HuggingFaceDetector(str(yolos), RULE).label_space
    assert space.class_names == (*LABELS.values(), "no object")
    assert space.background_index == len(LABELS)


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    folder = save_resnet(tmp_path / "resnet")
    with pytest.raises(ConfigError, match="transformers cannot load this model"):
        HuggingFaceDetector(str(folder), RULE)


def test_missing_weights_are_refused_by_name(yolos: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((yolos / name).read_bytes())
    weights = load_file(yolos / "model.safetensors")
    del weights["class_labels_classifier.layers.0.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"1 weights of this model are missing.*class_labels_classifier.layers.0.bias"
    ):
        HuggingFaceDetector(str(tmp_path), RULE)


SPACE = LabelSpace(name="s", class_names=("a", "b", "none"), background_index=2)


def test_selection_fills_up_to_the_least_and_cuts_at_the_most() -> None:
    probs = np.array([[0.1, 0.0, 0.9], [0.6, 0.1, 0.3], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5]], np.float32)
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (4, 1)) + np.arange(4, dtype=np.float32)[:, None]

    def chosen(**rule: Any) -> list[float]:
        full = {"score_threshold": 0.4, "nms_iou": None, "min_rois": 0, "max_rois": 9, "label_topk": 2, **rule}
        return [round(float(s), 2) for s in select(boxes, probs, SelectionRule(**full), SPACE, (99, 99))[0].scores]

    assert chosen() == [0.6, 0.5]
    assert chosen(min_rois=3) == [0.6, 0.5, 0.3]
    assert chosen(max_rois=1) == [0.6]
    assert chosen(score_threshold=0.95) == []
    assert chosen(nms_iou=0.3, min_rois=4) == [0.6]  # what suppression removed does not come back


def test_selection_drops_and_counts_boxes_without_area_in_the_image() -> None:
    boxes = np.array([[-20, 0, -5, 10], [5, 5, 30, 30]], np.float32)
    probs = np.full((2, 3), 1 / 3, np.float32)
    rule = SelectionRule(score_threshold=0, nms_iou=None, min_rois=0, max_rois=9, label_topk=5)
    rois, degenerate = select(boxes, probs, rule, SPACE, (20, 20))
    assert rois.boxes.tolist() == [[5, 5, 20, 20]]
    assert rois.label_ids.tolist() == [[0, 1, 2]]  # all classes where there are fewer than asked for
    assert degenerate == 1


@pytest.mark.parametrize("spec", ["", "hf:", "yolo:x", "annotations"])
def test_an_unknown_detector_is_answered_with_the_known_ones(spec: str, tmp_path: Path) -> None:
    source = JsonlSource([_table(tmp_path)])
    with pytest.raises(ConfigError, match=r"no such detector. There are annotations:FILE.json"):
        open_detector(spec, BuildConfig(), source)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"not a folder: there is no such path. Give a model's folder, or its hub name"
    ):
        open_detector(f"hf:{tmp_path}/none", BuildConfig(), JsonlSource([_table(tmp_path)]))
    with pytest.raises(ConfigError, match=r"no config.json in this folder"):
        open_detector(f"hf:{tmp_path}", BuildConfig(), JsonlSource([_table(tmp_path)]))


def test_a_device_that_is_not_there_is_told(yolos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device quantum: cannot be used here"):
        open_detector(f"hf:{yolos}", BuildConfig(device="quantum"), JsonlSource([_table(tmp_path)]))


def _table(folder: Path) -> Path:
    path = folder / "t.jsonl"
    path.write_text(json.dumps({"image": "0.png", "caption": "c"}))
    return path
