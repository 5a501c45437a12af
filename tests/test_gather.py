"""Fields of many images copied into one buffer, against reading the images one by one."""

import numpy as np
import pytest

from vlbert_data.errors import ShardError
from vlbert_data.manifest import CONTAINERS
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.synthetic import FakeShards, write_shards

VIEWS = 3
FAKE = FakeShards(num_images=17, num_rois=(0, 6), masked_views=VIEWS, feature_dim=12)
IMAGES = np.array([16, 0, 3, 3, 9, 11])


@pytest.fixture(scope="module", params=CONTAINERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    return ShardFolder.open(
        write_shards(tmp_path_factory.mktemp("shards"), FAKE, container=request.param, shard_size=5)
    )


@pytest.mark.parametrize("most", [None, 0, 2, 4, 100])
def test_the_first_rois_of_images_come_as_reading_gives_them(folder: ShardFolder, most: int | None) -> None:
    limit = None if most is None else np.full(len(IMAGES), most)
    picked = Picked(folder, IMAGES, limit)
    read = [folder.read(image) for image in IMAGES.tolist()]
    assert picked.num_rois.tolist() == [min(record.num_rois, 100 if most is None else most) for record in read]
    for name in ("features", "boxes", "label_ids", "label_probs", "scores", "image_feature"):
        arrays = [
            getattr(record.rois, name) if hasattr(record.rois, name) else getattr(record, name) for record in read
        ]
        wanted = np.concatenate([a[None] if name == "image_feature" else a[:most] for a in arrays])
        out = np.empty_like(wanted)
        picked.copy(name, out)
        assert np.array_equal(out, wanted)


def test_single_rois_come_as_reading_all_gives_them(folder: ShardFolder) -> None:
    picked = Picked(folder, IMAGES, np.full(len(IMAGES), 4))
    rois = np.arange(0, int(picked.num_rois.sum()), 3)
    for found, name in zip(picked.read_rois(("label_ids", "scores"), rois), ("label_ids", "scores"), strict=True):
        assert np.array_equal(found, picked.read(name)[rois])


@pytest.mark.parametrize("most", [1, 3, 100])
def test_one_view_of_each_image_is_copied_as_reading_gives_it(folder: ShardFolder, most: int) -> None:
    views = np.array([0, 2, 1, 2, 0, 1])
    picked = Picked(folder, IMAGES, np.full(len(IMAGES), most))
    stored = [
        (view, folder.read(image).masked_views) for view, image in zip(views.tolist(), IMAGES.tolist(), strict=True)
    ]
    for name in ("chosen", "features"):
        wanted = np.concatenate([getattr(of_image, name)[view, :most] for view, of_image in stored])
        out = np.empty_like(wanted)
        picked.copy(f"view_{name}", out, views=views)
        assert np.array_equal(out, wanted)
    out = np.empty((len(IMAGES), FAKE.feature_dim), np.float16)
    picked.copy("view_image_features", out, views=views)
    assert np.array_equal(out, np.stack([of_image.image_features[view] for view, of_image in stored if of_image]))


def test_all_views_of_all_rois_are_copied_without_a_choice(folder: ShardFolder) -> None:
    picked = Picked(folder, IMAGES)
    out = np.empty((int(picked.num_rois.sum()) * VIEWS, FAKE.feature_dim), np.float16)
    picked.copy("view_features", out)
    views = [folder.read(image).masked_views for image in IMAGES.tolist()]
    assert np.array_equal(out, np.concatenate([v.features.reshape(-1, FAKE.feature_dim) for v in views if v]))


def test_a_buffer_of_another_size_or_dtype_is_refused(folder: ShardFolder) -> None:
    picked = Picked(folder, IMAGES, np.full(len(IMAGES), 2))
    num = int(picked.num_rois.sum())
    for out in (np.empty((num + 1, 4), np.float32), np.empty((num, 8), np.float16)):
        with pytest.raises(ValueError, match="boxes of these images"):
            picked.copy("boxes", out)
    with pytest.raises(ValueError, match="name one view"):
        picked.copy("view_chosen", np.empty((VIEWS, num), np.bool_))
    with pytest.raises(ShardError, match="stores no attribute_ids"):
        picked.copy("attribute_ids", np.empty(num, np.uint16))
