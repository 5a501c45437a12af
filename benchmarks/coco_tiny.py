"""coco_tiny: can the recipe `tiny` learn, from 250 photos, what is masked in 46 others?

    python -m benchmarks.coco_tiny [--coco FOLDER] [--text FOLDER] [--vocabulary FILE] [--describer FOLDER]
    python -m benchmarks.coco_tiny --folds 5 [--set SECTION.NAME=VALUE ...]

The commands that a person types, one after another: shards of 250 photos and of 46 others (chosen by a hash of their
ids), a corpus, `vlb pretrain --preset tiny` with several seeds. Every checkpoint is measured on the 46 photos with
masks that do not depend on the recipe: 15 % of RoIs are asked, as published, each of them is hidden with what shows it,
and all of it is drawn anew several times. Prints the accuracy beside that of always answering the most frequent class,
with an interval by bootstrap over photos, since RoIs of a photo are alike; keeps both and the curve in
results/coco_tiny.json and .svg.

--folds is for choosing settings: it learns from all but a fold of the 250 photos, measures on that fold, for each in
turn, and never opens the 46. Nothing is kept.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import RESULTS, SCRATCH, circumstances, real_data

NUM_ASIDE = 46
MEASURE = ("masking.roi_share=0.15", "masking.roi_hide_share=1.0", "masking.leakage=overlap")
DRAWS = 5
RESAMPLES = 10_000
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one run reached, photo by photo: float64 [photos] each, over all draws.

    asked: masked RoIs. right: those that the model names. frequent: those of the most frequent class, `name`.
    """

    step: int
    asked: Counts
    right: Counts
    frequent: Counts
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training. found: by checkpoint, in order; the last one is the result."""

    seed: int
    seconds: float
    found: tuple[Found, ...]


def main() -> None:
    """Run it and keep the results."""
    options = parse()
    options.scratch.mkdir(parents=True, exist_ok=True)
    build_data(options, options.scratch)
    if options.folds:
        choose(options)
        return
    runs = [train(options, options.scratch / "train", options.scratch / "aside", seed) for seed in range(options.seeds)]
    result = summary(runs)
    say(result)
    if not options.set and not options.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "coco_tiny.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "coco_tiny.svg").write_text(curve_svg(result))


def build_data(options: argparse.Namespace, folder: Path) -> None:
    """Build both shard folders and the corpus; finished ones are left alone."""
    captions = json.loads((options.coco / "captions.json").read_bytes())
    images = sorted(captions["images"], key=lambda image: hashlib.blake2b(str(image["id"]).encode()).digest())
    for name, chosen in (("aside", images[:NUM_ASIDE]), ("train", images[NUM_ASIDE:])):
        ids = {image["id"] for image in chosen}
        kept = [caption for caption in captions["annotations"] if caption["image_id"] in ids]
        part = folder / f"{name}.json"
        part.write_text(json.dumps({**captions, "images": chosen, "annotations": kept}))
        vlb(
            *("build-shards", part, "--images", options.coco / "images", "--out", folder / name),
            *("--detector", f"annotations:{options.coco / 'instances.json'}", "--describer", f"hf:{options.describer}"),
        )
    vlb("build-corpus", options.text, "--tokenizer", options.vocabulary, "--out", folder / "text")


def vlb(*args: object) -> str:
    """Run `vlb` as a person does and return what it printed on stdout."""
    command = [sys.executable, "-m", "cli.main", *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def choose(options: argparse.Namespace) -> None:
    """Print what settings reach in a cross-validation among the photos that are trained on."""
    train_shards = options.scratch / "train"
    ids = np.array([image["id"] for image in json.loads((options.scratch / "train.json").read_bytes())["images"]])
    fold = np.arange(len(ids)) % options.folds  # the photos stand in the order of a hash
    last = []
    for number in range(options.folds):
        parts = []
        for name, chosen in (("learn", ids[fold != number]), ("check", ids[fold == number])):
            part = options.scratch / f"{name}-{number}-of-{options.folds}"
            parts.append(part)
            if not part.exists():
                listed = part.with_suffix(".txt")
                listed.write_text("".join(f"{image}\n" for image in chosen))
                vlb("extract-subset", train_shards, "--ids", listed, "--out", part)
        last.append(train(options, parts[0], parts[1], 0).found[-1])
        print(f"fold {number}: {sentence(last[-1:])}")
    whole = Found(
        step=last[0].step,
        asked=np.concatenate([found.asked for found in last]),
        right=np.concatenate([found.right for found in last]),
        frequent=np.concatenate([found.frequent for found in last]),
        name=", ".join(sorted({found.name for found in last})),
    )
    print(f"all {options.folds} folds: {sentence([whole])}")


def train(options: argparse.Namespace, learn: Path, check: Path, seed: int) -> Run:
    """Return what the recipe learns from the shards `learn` about `check`: every 100 steps, or for folds at the end."""
    run = options.scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    changes = [*options.set, f"run.seed={seed}", "run.checkpoint_every=100", "run.keep_checkpoints=100"]
    begin = time.monotonic()
    vlb(
        *("pretrain", "--shards", learn, "--corpus", options.scratch / "text", "--tokenizer", options.vocabulary),
        *("--preset", "tiny", "--out", run, *(part for change in changes for part in ("--set", change))),
    )
    seconds = time.monotonic() - begin
    checkpoints = sorted((run / "checkpoints").iterdir())[-1 if options.folds else 0 :]
    return Run(seed=seed, seconds=seconds, found=tuple(measured(path, check) for path in checkpoints))


def measured(checkpoint: Path, shards: Path) -> Found:
    """Return what a checkpoint makes of masked RoIs of `shards`, photo by photo."""
    from vlbert_train.evaluate import EvaluationData, open_run

    opened = open_run(checkpoint, EvaluationData(shards=(str(shards),)), changes=MEASURE)
    captions = opened.supply.measured.captions
    assert captions is not None, "there are photos"
    photos, truths, guesses = [], [], []
    with opened.forward.evaluating():
        for draw in range(DRAWS):
            for batch in opened.supply.validation_batches(draw=draw):
                slots = batch.roi_target_slots.numpy()
                sequences = np.searchsorted(batch.cu_seqlens.numpy(), slots, side="right") - 1
                photos.append(captions.locate(batch.example_ids.numpy()[sequences]).image)
                top = batch.roi_target_probs.argmax(dim=1, keepdim=True)
                truths.append(batch.roi_target_ids.gather(1, top)[:, 0].numpy())
                guesses.append(opened.forward.predict(batch).roi_logits.argmax(dim=1).cpu().numpy())
    photo, truth = np.concatenate(photos), np.concatenate(truths)
    frequent = int(np.bincount(truth).argmax())
    space = opened.supply.label_space
    return Found(
        step=opened.step,
        asked=np.bincount(photo, minlength=captions.num_images).astype(float),
        right=np.bincount(photo, truth == np.concatenate(guesses), minlength=captions.num_images),
        frequent=np.bincount(photo, truth == frequent, minlength=captions.num_images),
        name=space.class_names[frequent] if space else str(frequent),
    )


def interval(found: Iterable[Found]) -> tuple[float, float]:
    """Return the 95 % interval of (right - most frequent) / asked, over bootstrap samples of the photos.

    found: runs on the same photos, which are drawn for all of them together.
    Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 1979 (percentiles).
    """
    gained = np.sum([each.right - each.frequent for each in found], axis=0)  # [photos]
    asked = np.sum([each.asked for each in found], axis=0)
    drawn = np.random.default_rng(0).integers(len(asked), size=(RESAMPLES, len(asked)))
    differences = gained[drawn].sum(axis=1) / np.maximum(asked[drawn].sum(axis=1), 1)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def shares(found: Sequence[Found]) -> tuple[float, float]:
    """Return (accuracy, accuracy of the most frequent class) over runs on the same photos."""
    asked, right, frequent = (
        sum(getattr(each, name).sum() for each in found) for name in ("asked", "right", "frequent")
    )
    return float(right / asked), float(frequent / asked)


def sentence(found: Sequence[Found]) -> str:
    """Return both numbers and the interval in words."""
    (right, frequent), (low, high) = shares(found), interval(found)
    return (
        f"{right:.1%} of masked RoIs right; always {found[0].name}: {frequent:.1%}; {right - frequent:+.1%}, "
        f"95 % interval {low:+.1%} to {high:+.1%}"
    )


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what is kept."""
    last = [run.found[-1] for run in runs]
    (right, frequent), between = shares(last), interval(last)
    return {
        "benchmark": "coco_tiny",
        **circumstances(),
        "masks": f"{', '.join(MEASURE)}, {DRAWS} draws",
        "photos": len(last[0].asked),
        "masked_rois": int(last[0].asked.sum()),
        "masked_roi_accuracy": right,
        "most_frequent_class": frequent,
        "most_frequent_class_name": last[0].name,
        "difference": right - frequent,
        "difference_95_percent_by_photos": between,
        "runs": [
            {
                "seed": run.seed,
                "masked_roi_accuracy": shares(run.found[-1:])[0],
                "difference_95_percent_by_photos": interval(run.found[-1:]),
                "seconds_of_training": round(run.seconds, 1),
            }
            for run in runs
        ],
        "curve": [
            {"step": found[0].step, "masked_roi_accuracy": shares(found)[0], "by_seed": [shares([f])[0] for f in found]}
            for found in zip(*(run.found for run in runs), strict=True)
        ],
    }


def say(result: dict[str, Any]) -> None:
    """Print both numbers and the curve."""
    for point in result["curve"]:
        own = " ".join(f"{value:.1%}" for value in point["by_seed"])
        print(f"step {point['step']:5d}: masked RoIs {point['masked_roi_accuracy']:.1%} (by seed: {own})")
    low, high = result["difference_95_percent_by_photos"]
    print(
        f"masked RoIs of {result['photos']} photos never trained on, {len(result['runs'])} seeds: "
        f"{result['masked_roi_accuracy']:.1%} right; always {result['most_frequent_class_name']}: "
        f"{result['most_frequent_class']:.1%}; difference {result['difference']:+.1%}, 95 % interval over photos "
        f"{low:+.1%} to {high:+.1%}; {result['runs'][0]['seconds_of_training']:.0f} s of training"
    )


def curve_svg(result: dict[str, Any], width: int = 480, height: int = 240) -> str:
    """Return the curve of masked-RoI accuracy over steps, with the most frequent class as a dashed line."""
    last = max(point["step"] for point in result["curve"])

    def place(step: float, share: float) -> str:
        return f"{40 + (width - 50) * step / last:.1f},{height - 30 - (height - 50) * share:.1f}"

    lines = [[point["masked_roi_accuracy"] for point in result["curve"]]]
    lines += [[point["by_seed"][run] for point in result["curve"]] for run in range(len(result["runs"]))]
    steps = [point["step"] for point in result["curve"]]
    drawn = "\n".join(
        f'<polyline points="{" ".join(map(place, steps, line))}" fill="none" '
        f'stroke="{"silver" if number else "black"}" stroke-width="{1 if number else 2}"/>'
        for number, line in reversed(list(enumerate(lines)))
    )
    baseline = f"{place(0, result['most_frequent_class'])} {place(last, result['most_frequent_class'])}"
    marks = "".join(
        f'<text x="4" y="{place(0, share / 100).split(",")[1]}" font-size="10">{share} %</text>'
        for share in (0, 25, 50, 75, 100)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">\n'
        f'<text x="40" y="14" font-size="12">masked RoIs guessed right on photos never trained on</text>\n{marks}\n'
        f"{drawn}\n"
        f'<polyline points="{baseline}" fill="none" stroke="gray" stroke-dasharray="4"/>\n'
        f'<text x="40" y="{height - 8}" font-size="10">step 0 to {last}; black: all seeds, '
        "gray: each; dashed: the most frequent class</text>\n"
        "</svg>\n"
    )


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, default=real_data("coco"))
    parser.add_argument("--text", type=Path, default=real_data("text", "wikitext-2"))
    parser.add_argument("--vocabulary", type=Path, default=real_data("vocab", "tokenizer.json"))
    parser.add_argument("--describer", type=Path, default=real_data("weights", "mobilenetv2"))
    parser.add_argument("--scratch", type=Path, default=SCRATCH / "coco_tiny")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs, with seeds 0, 1, ...")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate among the photos that are trained on")
    parser.add_argument("--dry", action="store_true", help="print the figures and keep no file of them")
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe; keeps no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
