"""Batches of all policies against batches made one example at a time."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_batches import SlowSupply, assert_same, plan_of, taken_apart
from small_text import make_corpus, make_text, write_vocabulary

from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.synthetic import FakeShards, make_records
from vlbert_data.types import ImageRois
from vlbert_train.batch import Batch
from vlbert_train.config import PretrainConfig, with_data
from vlbert_train.examples import open_evaluation, open_supply
from vlbert_train.masking import MaskKeys
from vlbert_train.supply import Supply

# A zero-width space is a text, but no word.
NO_WORD = "\u200b"
LABELLED = FakeShards(num_images=23, num_rois=(0, 9), feature_dim=8, num_classes=6, masked_views=3, label_topk=3)
STEPS = 9


@dataclass(frozen=True)
class World:
    """Two labelled folders of other containers and label widths, one without labels, a corpus and a vocabulary."""

    root: Path

    def config(self, *changes: str, shards: str = "lmdb,hdf5") -> PretrainConfig:
        folders = ",".join(str(self.root / name) for name in shards.split(","))
        return PretrainConfig().assigned(
            [
                f"data.shards={folders}",
                f"data.corpus={self.root / 'corpus'}",
                f"data.tokenizer={self.root / 'vocab.txt'}",
                "data.caption_batch=11",
                "data.text_batch=5",
                "data.max_length=20",
                "masking.roi_share=0.4",
                "masking.word_share=0.3",
                *changes,
            ]
        )

    def supply(self, *changes: str, shards: str = "lmdb,hdf5") -> Supply:
        return open_supply(self.config(*changes, shards=shards), cache_dir=self.root / "cache")


def odd_records(fake: FakeShards) -> list[ImageRois]:
    """Return fake records, some of them with what is rare: no word, five captions, RoIs of no class."""
    records = list(make_records(fake))
    records[1] = replace(records[1], captions=(NO_WORD, "the red star and the old town " * 9))
    records[4] = replace(records[4], captions=tuple(f"the captain said {number}" for number in range(5)))
    if fake.label_topk:
        probs = records[2].rois.label_probs.copy()
        probs[::2] = 0
        records[2] = replace(records[2], rois=replace(records[2].rois, label_probs=probs))
    return records


def write_folder(path: Path, fake: FakeShards, container: str) -> None:
    path.mkdir()
    facts = FolderFacts(container=container, schema=fake.schema(), detector={}, describer={}, source={}, build={})
    write_records(path, odd_records(fake), facts, shard_size=7)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_folder(root / "lmdb", LABELLED, "lmdb")
    write_folder(root / "hdf5", replace(LABELLED, num_images=9, label_topk=2, masked_views=2, seed=5), "hdf5")
    write_folder(root / "plain", replace(LABELLED, label_topk=0, masked_views=0), "lmdb")
    (root / "novel.txt").write_bytes(make_text(3, 30).encode())
    write_vocabulary(root / "vocab.txt")
    make_corpus([root / "novel.txt"], root / "vocab.txt", root / "corpus", workers=1).run()
    return World(root)


CASES = {
    "overlap": (),
    "overlap everywhere": ("masking.overlap_threshold=0.05", "masking.roi_share=0.9"),
    "pixels": ("masking.leakage=pixels",),
    "published": ("masking.leakage=published",),
    "published, nearly all hidden": (
        "masking.leakage=published",
        "masking.roi_share=0.95",
        "masking.roi_hide_share=1.0",
        "data.max_length=60",
    ),
    "separate": ("data.truncation=separate", "data.max_text=9", "data.max_rois=4", "data.min_text_tokens=3"),
    "no RoI": ("data.truncation=separate", "data.max_rois=0"),
    "alternate": ("data.interleave=alternate", "data.caption_steps=2"),
    "flat windows": ("data.text_windows=flat", "data.shuffle=windows", "data.window_shards=2"),
    "joined lines": ("data.text_windows=lines-joined", "masking.roi_share=0.0"),
    "long": ("data.max_length=200", "model.max_position_embeddings=512"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_batches_are_those_of_going_example_by_example(world: World, case: str) -> None:
    supply, slow = world.supply(*CASES[case]), SlowSupply(world.config(*CASES[case]))
    assert supply.num_caption_examples == len(slow.captions)
    for step in (0, 1, 2, 3, 7, 40):
        [batch] = supply.batches(step)
        assert batch.step == step
        assert_same(batch, slow.batch(plan_of(supply, step), MaskKeys.training(0)))


@pytest.mark.parametrize("container", ["lmdb", "hdf5", "plain"])
def test_one_folder_alone_and_shards_without_labels_give_the_same(world: World, container: str) -> None:
    supply, slow = world.supply(shards=container), SlowSupply(world.config(shards=container))
    for step in range(4):
        [batch] = supply.batches(step)
        assert_same(batch, slow.batch(plan_of(supply, step), MaskKeys.training(0)))
        if container == "plain":
            assert not batch.roi_hidden.any()
            assert batch.roi_target_ids.shape == (0, 0)
    assert supply.has_roi_targets == (container != "plain")


def test_the_background_is_a_class_where_the_manifest_has_one(world: World, tmp_path: Path) -> None:
    for has_background in (True, False):
        fake = replace(LABELLED, has_background=has_background)
        write_folder(tmp_path / str(has_background), fake, "lmdb")
        config = world.config("data.text_batch=16", shards=str(tmp_path / str(has_background)))
        supply = open_supply(config, cache_dir=tmp_path / "cache")
        assert supply.num_labels == 6 + has_background
        seen = {int(id_) for step in range(12) for id_ in supply.batches(step)[0].roi_target_ids.flatten()}
        assert seen == set(range(6 + has_background))


def test_word_and_roi_targets_are_never_cut_off(world: World) -> None:
    for step in range(STEPS):
        for sequence in taken_apart(world.supply().batches(step)[0]):
            assert len(sequence.positions) <= 21
            tokens, rois = dict(sequence.tokens), {place for place, *_ in sequence.rois}
            assert all(place in tokens for place, _ in sequence.word_targets)
            assert all(place in rois for place, _ in sequence.roi_targets)


def contents(batches: Sequence[Batch]) -> list[str]:
    """Return what all batches hold, sequence by sequence, exactly, in an order of its own."""
    found = []
    for batch in batches:
        for sequence in taken_apart(batch):
            sequence.rois = [(*roi[:3], roi[3].tolist()) for roi in sequence.rois]  # type: ignore[misc]
            found.append(repr(sequence))
    return sorted(found)


@pytest.mark.parametrize("policy", ["overlap", "pixels", "published"])
def test_ranks_and_micro_batches_change_nothing_of_the_global_batch(world: World, policy: str) -> None:
    whole = world.supply(f"masking.leakage={policy}")
    for world_size, micro_batches in ((1, 4), (2, 1), (3, 2), (16, 1)):
        supply = world.supply(f"masking.leakage={policy}")
        for step in (0, 5, 2):
            parts = [
                batch
                for rank in range(world_size)
                for batch in supply.batches(step, rank=rank, world_size=world_size, micro_batches=micro_batches)
            ]
            assert len(parts) == world_size * micro_batches
            assert contents(parts) == contents(whole.batches(step))


def test_steps_asked_in_any_order_are_those_of_the_run(world: World) -> None:
    run = world.supply()
    wanted = {step: contents(run.batches(step)) for step in range(70)}
    for step in (69, 3, 40, 39, 0):
        assert contents(world.supply().batches(step)) == wanted[step]


def test_a_step_with_fewer_examples_than_parts_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="cannot be cut into 17 parts"):
        world.supply().batches(0, world_size=17)


@pytest.mark.parametrize("shuffle", ["global", "windows"])
def test_every_caption_of_every_image_comes_once_an_epoch(world: World, shuffle: str) -> None:
    supply = world.supply(f"data.shuffle={shuffle}", "data.window_shards=2", "data.corpus=none", "data.caption_batch=7")
    slow = SlowSupply(world.config())
    stream = [int(id_) for step in range(30) for id_ in _in_plan_order(supply, step)]
    size = len(slow.captions)
    assert size == 2 * 32 + 2 * 3
    for epoch in range(30 * 7 // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    # The image with five captions gives five examples, each with another text.
    five = [number for number, entry in enumerate(slow.captions) if entry[:2] == (0, 4)]
    assert len(five) == 5
    assert [supply.example_name(number) for number in five] == [
        f"{world.root / 'lmdb'} image 00000004 caption {caption}" for caption in range(5)
    ]


def _in_plan_order(supply: Supply, step: int) -> list[int]:
    """Return the examples of a step in the order of the plan, having checked that the batch holds just these."""
    planned = [number for _, number, _ in plan_of(supply, step)]
    assert Counter(planned) == Counter(supply.batches(step)[0].example_ids.tolist())
    return planned


def test_a_corpus_shorter_than_a_batch_is_gone_through_again_with_other_masks(world: World, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the old captain went slowly and said the sea and the town\n" * 2)
    make_corpus([tmp_path / "short.txt"], world.root / "vocab.txt", tmp_path / "short", workers=1).run()
    supply = world.supply(f"data.corpus={tmp_path / 'short'}", "data.text_batch=40", "masking.word_share=0.5")
    texts = [sequence for sequence in taken_apart(supply.batches(0)[0]) if not sequence.has_image]
    assert len(texts) == 40
    assert supply.num_text_examples == 2
    assert Counter(sequence.example for sequence in texts) == {
        supply.num_caption_examples: 20,
        supply.num_caption_examples + 1: 20,
    }
    assert len({str(sequence.word_targets) for sequence in texts}) > 20


def test_images_kept_aside_are_validated_on_and_never_trained_on(world: World) -> None:
    supply = world.supply("data.val_fraction=0.3", "run.validate_examples=100000")
    slow = SlowSupply(world.config())
    images = {(number, image) for number, image, _ in slow.captions}
    trained = {_image_of(supply, id_) for step in range(40) for id_ in _trained_captions(supply, step)}
    held_out = [sequence for batch in supply.validation_batches(text=False) for sequence in taken_apart(batch)]
    assert supply.num_validation_examples == len(held_out)
    assert len(held_out) + supply.num_caption_examples == len(slow.captions)
    assert 0.1 < 1 - len(trained) / len(images) < 0.5
    # Told apart by their RoIs, since examples of the two sides are numbered separately.
    by_features = {_print_of(slow, number, image): (number, image) for number, image in images}
    aside = {by_features[key] for key in map(_print_of_sequence, held_out) if key in by_features}
    names = {
        f"{slow.folders[number].path} image {slow.folders[number].index.image_id(image)}" for number, image in aside
    }
    assert names
    assert not names & trained


def _trained_captions(supply: Supply, step: int) -> list[int]:
    return [number for kind, number, _ in plan_of(supply, step) if kind == "caption"]


def _image_of(supply: Supply, example: int) -> str:
    return supply.example_name(example).rpartition(" caption ")[0]


def _print_of(slow: SlowSupply, number: int, image: int) -> tuple[float, ...]:
    features = slow.folders[number].read(image).features
    return tuple(features[0].astype(float)) if len(features) else ()


def _print_of_sequence(sequence: object) -> tuple[float, ...]:
    rois = sequence.rois  # type: ignore[attr-defined]
    return tuple(rois[1][3]) if len(rois) > 1 else (0.0,)


def test_validation_is_the_same_for_every_seed_world_and_call(world: World) -> None:
    changes = ("data.val_fraction=0.4", "run.validate_examples=15")
    whole = world.supply(*changes)
    wanted = contents(list(whole.validation_batches()))
    assert contents(list(whole.validation_batches())) == wanted
    assert len(wanted) == 15
    seeded = world.supply(*changes, "run.seed=9")
    parts = [batch for rank in range(3) for batch in seeded.validation_batches(rank=rank, world_size=3)]
    assert contents(parts) == wanted


def test_each_draw_of_masks_is_another_one_of_the_same_examples_and_the_same_at_every_call(world: World) -> None:
    changes = ("data.val_fraction=0.4", "run.validate_examples=15", "masking.word_share=0.5", "masking.roi_share=0.5")
    supply = world.supply(*changes)
    draws = [[s for b in supply.validation_batches(draw=draw) for s in taken_apart(b)] for draw in range(3)]
    assert contents(list(supply.validation_batches(draw=2))) == contents(
        [supply.measured_batch(np.array([s.example for s in draws[2]]), draw=2)]
    )
    for other in draws[1:]:
        assert [s.example for s in other] == [s.example for s in draws[0]]
        assert str([s.word_targets for s in other]) != str([s.word_targets for s in draws[0]])
        assert str([s.roi_targets for s in other]) != str([s.roi_targets for s in draws[0]])
    assert contents(list(supply.validation_batches())) == contents(list(supply.validation_batches(draw=0)))


def test_another_image_keeps_the_words_and_asks_no_roi(world: World) -> None:
    supply = open_evaluation(
        [world.root / "lmdb", world.root / "hdf5"],
        world.root / "corpus",
        world.config(),
        cache_dir=world.root / "cache",
    )
    right = {s.example: s for b in supply.validation_batches(text=False) for s in taken_apart(b)}
    wrong = {s.example: s for b in supply.validation_batches(other_image=True) for s in taken_apart(b)}
    assert right.keys() == wrong.keys()
    assert len(right) == supply.num_caption_examples
    for example, own in right.items():
        assert (wrong[example].tokens, wrong[example].word_targets) == (own.tokens, own.word_targets)
        assert not wrong[example].roi_targets
        assert len(wrong[example].positions) <= 21
        boxes = [[roi[1] for roi in side.rois[1:]] for side in (own, wrong[example])]
        assert boxes[0] != boxes[1] or not any(boxes)
    texts = [s for b in supply.validation_batches() for s in taken_apart(b) if not s.has_image]
    assert len(texts) == supply.num_text_examples


def test_joint_brings_any_ratio_and_one_kind_alone_works(world: World) -> None:
    for captions, texts in ((3, 9), (12, 1)):
        [batch] = world.supply(f"data.caption_batch={captions}", f"data.text_batch={texts}").batches(3)
        assert batch.has_image.tolist() == [True] * captions + [False] * texts
    texts_alone = with_data(world.config("data.text_batch=6"), shards=())
    [batch] = open_supply(texts_alone, cache_dir=world.root / "cache").batches(0)
    assert batch.has_image.tolist() == [False] * 6
    assert batch.roi_features.shape == (0, 2048)
    assert not batch.image_features.any()


def test_batches_of_other_steps_share_no_memory_that_is_written(world: World) -> None:
    supply = world.supply()
    first = supply.batches(0)[0]
    before = first.roi_features.clone()
    for step in range(1, STEPS):
        supply.batches(step)
    assert torch.equal(first.roi_features, before)


def test_folders_that_do_not_fit_together_are_refused_with_the_difference(world: World, tmp_path: Path) -> None:
    others = {
        "features have 8 numbers in the first and 12": replace(LABELLED, feature_dim=12),
        "synthetic with 7 classes and synthetic with 9": replace(LABELLED, num_classes=8),
        "one has classes and the other has none": replace(LABELLED, label_topk=0),
    }
    for number, (words, fake) in enumerate(others.items()):
        write_folder(tmp_path / str(number), fake, "lmdb")
        with pytest.raises(ConfigError, match=words):
            world.supply(shards=f"lmdb,{tmp_path / str(number)}")
    path = tmp_path / "described"
    path.mkdir()
    facts = FolderFacts(
        container="lmdb", schema=LABELLED.schema(), detector={}, describer={"name": "x"}, source={}, build={}
    )
    write_records(path, odd_records(LABELLED), facts, shard_size=7)
    with pytest.raises(ConfigError, match="made by other describers: name is None in the first and 'x' in the second"):
        world.supply(shards=f"lmdb,{path}")


def test_what_cannot_be_trained_on_is_refused_before_the_first_step(world: World, tmp_path: Path) -> None:
    write_folder(tmp_path / "no-views", replace(LABELLED, masked_views=0), "lmdb")
    with pytest.raises(ConfigError, match=r"has no masked views, which masking\.leakage=pixels needs"):
        world.supply("masking.leakage=pixels", shards=str(tmp_path / "no-views"))
    with pytest.raises(ConfigError, match="to be validated on, but it holds the same images as"):
        world.supply(f"data.val_shards={world.root / 'hdf5'}")
    (tmp_path / "other.txt").write_text((world.root / "vocab.txt").read_text() + "zebra\n")
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        world.supply(f"data.tokenizer={tmp_path / 'other.txt'}")
    folder = ShardFolder.open(tmp_path / "no-views")
    shard = folder.path / folder.manifest.shards[1].file
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ShardError, match=f"{shard.name}: .* bytes; the manifest says"):
        world.supply(shards=str(folder.path))


def test_a_class_id_beyond_the_classes_is_refused_by_the_folders_name(world: World, tmp_path: Path) -> None:
    fake = replace(LABELLED, num_images=4, num_rois=(4, 4))
    write_folder(tmp_path / "damaged", replace(fake, num_images=5), "lmdb")
    folder = ShardFolder.open(tmp_path / "damaged")
    shard = folder.shard(0)
    path, places = shard.path, [int(place) for place in shard.places("label_ids")]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 2] = (500).to_bytes(2, "little")
    path.write_bytes(bytes(data))
    supply = world.supply("masking.roi_share=1.0", "data.corpus=none", shards=str(tmp_path / "damaged"))
    with pytest.raises(ShardError, match="damaged: a RoI of class 500, but there are 7 classes"):
        supply.batches(0)


def test_the_overlap_rule_hides_more_than_is_asked_and_nothing_else_changes(world: World) -> None:
    published = world.supply("masking.leakage=published")
    hidden = Counter[str]()
    for step in range(STEPS):
        [ours], [theirs] = world.supply().batches(step), published.batches(step)
        assert torch.equal(ours.roi_target_slots, theirs.roi_target_slots)
        assert torch.equal(ours.token_ids, theirs.token_ids)
        assert bool((ours.roi_hidden | ~theirs.roi_hidden).all())
        hidden.update(overlap=int(ours.roi_hidden.sum()), published=int(theirs.roi_hidden.sum()))
    assert hidden["overlap"] > hidden["published"] > 0


def test_shard_sizes_count_the_examples_that_lie_in_each_shard(world: World) -> None:
    for changes in ((), ("data.val_fraction=0.5",)):
        supply = world.supply(*changes)
        assert supply._training is not None
        captions = supply._training.captions
        assert captions is not None
        located = captions.locate(np.arange(len(captions)))
        counted = Counter[tuple[int, int]]()
        for which, image in zip(located.folder.tolist(), located.image.tolist(), strict=True):
            counted[which, int(captions.folders[which].index.shard[image])] += 1
        shards = [
            (number, shard)
            for number, folder in enumerate(captions.folders)
            for shard in range(len(folder.manifest.shards))
        ]
        assert captions.shard_sizes().tolist() == [counted[key] for key in shards]
        # Examples are numbered through shards in order, which is what windows of shards rest on.
        order = [
            shards.index((w, int(captions.folders[w].index.shard[i])))
            for w, i in zip(located.folder.tolist(), located.image.tolist(), strict=True)
        ]
        assert all(a <= b for a, b in itertools.pairwise(order))
