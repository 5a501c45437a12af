"""bench_build: a whole build of real photos against what its detector and describer alone take.

    python -m benchmarks.bench_build [--pairs 3] [--threads 2] [--photos 296]

Both sides get the photos decoded: the build as PPM files, whose pixels only need copying, the models as arrays in
memory. So the ratio is what everything around the models costs: processes, checks, writing, syncing, hashing. A second
row builds from the JPEGs themselves, decoding included. Models are loaded beforehand; helper processes are started
within the measured time. Photos: COCO annotations for boxes, MobileNetV2 for features.
"""

import json
import shutil
from functools import partial
from pathlib import Path

from benchmarks.common import compare, parser, peak_mb, pin_threads, real_data, report


def main() -> None:
    """Measure and keep the result."""
    options = parser(__doc__, pairs=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--photos", type=int, default=296)
    options.add_argument("--coco", type=Path, default=real_data("coco"))
    options.add_argument("--describer", type=Path, default=real_data("weights", "mobilenetv2"))
    asked = options.parse_args()
    pin_threads(asked.threads)
    from vlbert_data.memory import keep_few_kernels, keep_freed_memory

    keep_freed_memory()
    keep_few_kernels()
    folder = asked.scratch / "build"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    world = World(asked.coco, asked.describer, folder, asked.photos)
    rows = [
        compare(
            f"build {asked.photos} photos, {words}", partial(world.build, kind), world.models_alone, pairs=asked.pairs
        )
        for kind, words in (("ppm", "decoded before"), ("jpg", "JPEG decoding included"))
    ]
    notes = ["the target is a time ratio of at most 1.15 for photos decoded before", f"peak memory {peak_mb():.0f} MB"]
    tables = [
        {
            **row.row(work=asked.photos, unit="photos"),
            "time ratio (median)": round(row.time_ratio, 3),
            "time ratios": " ".join(f"{ratio:.3f}" for ratio in row.time_ratios),
        }
        for row in rows
    ]
    report("bench_build", tables, notes=notes, keep=not asked.dry)
    shutil.rmtree(folder)


class World:
    """Photos as JPEG and as PPM files and as arrays, with the models that look at them."""

    def __init__(self, coco: Path, describer: Path, folder: Path, num_photos: int) -> None:
        from PIL import Image

        from vlbert_data.build.config import BuildConfig
        from vlbert_data.describe.open import open_describer
        from vlbert_data.detect.annotations import CocoAnnotations
        from vlbert_data.detect.base import DecodedImage
        from vlbert_data.images import decode_rgb

        self._folder = folder
        self._config = BuildConfig(workers=1)
        self._detector = CocoAnnotations(coco / "instances.json", max_rois=self._config.max_rois)
        self._describer = open_describer(f"hf:{describer}", self._config, self._detector)
        images = json.loads((coco / "captions.json").read_bytes())["images"][:num_photos]
        self._images = []
        lines: dict[str, list[str]] = {"jpg": [], "ppm": []}
        for image in images:
            photo = coco / "images" / image["file_name"]
            pixels = decode_rgb(photo.read_bytes())
            self._images.append(DecodedImage(image_id=str(image["id"]), file_name=photo.name, pixels=pixels))
            Image.fromarray(pixels).save(folder / f"{photo.stem}.ppm")
            for kind, path in (("jpg", photo), ("ppm", folder / f"{photo.stem}.ppm")):
                record = {"id": str(image["id"]), "image": str(path.absolute()), "caption": "a photo"}
                lines[kind].append(json.dumps(record) + "\n")
        for kind, written in lines.items():
            (folder / f"{kind}.jsonl").write_text("".join(written))

    def build(self, kind: str) -> None:
        """Build a folder where there is none."""
        from vlbert_data.build.run import Build
        from vlbert_data.sources.jsonl import JsonlSource

        out = self._folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        source = JsonlSource([self._folder / f"{kind}.jsonl"])
        made = Build(
            folder=out, source=source, detector=self._detector, describer=self._describer, config=self._config
        ).run()
        assert made.manifest is not None, "all shards of a whole build are there"
        assert made.manifest.num_images == len(self._images), "every photo is taken"

    def models_alone(self) -> None:
        """Find the RoIs of every photo and describe them, and nothing else."""
        for image in self._images:
            (rois,) = self._detector.detect([image])
            self._describer.describe([image.pixels], [rois.boxes])


if __name__ == "__main__":
    main()
