"""coco_tiny: can the recipe `tiny` learn, from 250 photos, what is masked in 46 others?

    python -m benchmarks.coco_tiny [--coco FOLDER] [--text FOLDER] [--vocabulary FILE] [--describer FOLDER]

The commands that a person types, one after another: shards of 250 photos and of 46 others (chosen by a hash of their
ids), a corpus, `vlb pretrain --preset tiny`, `vlb evaluate`. Prints the accuracy on masked RoIs of the 46 photos
beside that of always answering the most frequent class, and keeps the curve in results/coco_tiny.json and .svg.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, SCRATCH, circumstances, real_data

NUM_ASIDE = 46


def main() -> None:
    """Run it and keep the results."""
    options = parse()
    folder = options.scratch
    folder.mkdir(parents=True, exist_ok=True)
    build_data(options, folder)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    begin = time.monotonic()
    changes = [part for change in options.set for part in ("--set", change)]
    vlb(
        *("pretrain", "--shards", folder / "train", "--val-shards", folder / "aside", "--corpus", folder / "text"),
        *("--tokenizer", options.vocabulary, "--preset", "tiny", "--out", run, *changes),
    )
    seconds = time.monotonic() - begin
    report = json.loads(vlb("evaluate", run, "--shards", folder / "aside", "--json"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = summary(report, seconds, [line for line in lines if line["kind"] == "validation"])
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


def summary(report: dict[str, Any], seconds: float, curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is kept."""
    return {
        "benchmark": "coco_tiny",
        **circumstances(),
        "masked_roi_accuracy": report["rois"]["accuracy"],
        "most_frequent_class": report["roi_baseline"],
        "most_frequent_class_name": report["roi_baseline_class"],
        "masked_rois": report["rois"]["count"],
        "masked_word_accuracy": report["words_with_image"]["accuracy"],
        "visual_gain": report["visual_gain"],
        "seconds_of_training": round(seconds, 1),
        "curve": [
            {"step": line["step"], "masked_roi_accuracy": line["rois_accuracy"], "loss": line["loss"]} for line in curve
        ],
    }


def say(result: dict[str, Any]) -> None:
    """Print both numbers and the curve."""
    for point in result["curve"]:
        print(f"step {point['step']:5d}: masked RoIs {point['masked_roi_accuracy']:.1%}, loss {point['loss']:.3f}")
    print(
        f"masked RoIs of {NUM_ASIDE} photos never trained on: {result['masked_roi_accuracy']:.1%} of "
        f"{result['masked_rois']} right; always {result['most_frequent_class_name']}: "
        f"{result['most_frequent_class']:.1%}; {result['seconds_of_training']:.0f} s of training"
    )


def curve_svg(result: dict[str, Any], width: int = 480, height: int = 240) -> str:
    """Return the curve of masked-RoI accuracy over steps, with the most frequent class as a dashed line."""
    last = max(point["step"] for point in result["curve"])

    def place(step: float, share: float) -> str:
        return f"{40 + (width - 50) * step / last:.1f},{height - 30 - (height - 50) * share:.1f}"

    points = " ".join(place(point["step"], point["masked_roi_accuracy"]) for point in result["curve"])
    baseline = f"{place(0, result['most_frequent_class'])} {place(last, result['most_frequent_class'])}"
    marks = "".join(
        f'<text x="4" y="{place(0, share / 100).split(",")[1]}" font-size="10">{share} %</text>'
        for share in (0, 25, 50, 75, 100)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">\n'
        f'<text x="40" y="14" font-size="12">masked RoIs guessed right on photos never trained on</text>\n{marks}\n'
        f'<polyline points="{points}" fill="none" stroke="black" stroke-width="2"/>\n'
        f'<polyline points="{baseline}" fill="none" stroke="gray" stroke-dasharray="4"/>\n'
        f'<text x="40" y="{height - 8}" font-size="10">step 0 to {last}; dashed: the most frequent class</text>\n'
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
    parser.add_argument("--dry", action="store_true", help="print the figures and keep no file of them")
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe; keeps no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
