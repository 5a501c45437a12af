"""Train the two small models that the tour brings: a detector and a describer, some ten minutes on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/train_tour_models.py --out vlbert_data/tour/models

They learn from scenes of the tour's world that no tour makes. OUT/detector is RT-DETR's architecture at a hundredth of
its size, OUT/describer a ResNet of two stages whose map, averaged over a box, tells colour and shape; both are
transformers models in float16. OUT/measured.md says how good they are on scenes that they have not learned from.

The loss is written in `tour_detection`, in plain PyTorch: that of transformers needs scipy. Every place of the maps
of the encoder learns too, not the chosen queries alone, which is why some thousand steps are enough.
"""

import argparse
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tour_detection import corners, detection_loss
from transformers import PreTrainedModel, ResNetConfig, ResNetModel, RTDetrConfig, RTDetrForObjectDetection
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.roi_align import roi_align_mean
from vlbert_data.detect.huggingface import HuggingFaceDetector
from vlbert_data.detect.open import selection_rule
from vlbert_data.tour.measure import DetectorFigures, measure_detector
from vlbert_data.tour.scenes import CLASS_NAMES, COLOURS, HEIGHT_PX, MOST_SHAPES, SHAPES, WIDTH_PX, Scene, make_scene
from vlbert_data.tour.world import BUILD_SETTINGS

# Seeds of scenes: a tour's are small numbers.
TRAINING_SEED, MEASURING_SEED = 1_000_001, 1_000_002
ENCODER_MATCHES = 4
FEATURE_DIM, FEATURE_SCALE = 48, 0.1
MEASURED_SCENES = 500
DESCRIBER_SCENES = 3000
# pixels u8 [n, 3, 96, 128]; classes i64 [n, 4], -1 for none; boxes f32 [n, 4, 4], see `tour_detection`
Scenes = tuple[Tensor, Tensor, Tensor]
REPORT = """\
# The tour's models, measured

On {scenes} scenes ({things} shapes) that neither model has learned from; made by `benchmarks/train_tour_models.py`.

| figure | value |
| --- | --- |
| detector: mAP50 | {map50:.3f} |
| detector: precision of the RoIs that a tour keeps | {precision:.3f} |
| detector: recall of the RoIs that a tour keeps | {recall:.3f} |
| describer: colour read off a RoI's feature by one linear layer | {colour:.3f} |
| describer: shape read off a RoI's feature by one linear layer | {shape:.3f} |
| trained in | {minutes:.1f} minutes, {threads} thread, torch {torch} |
"""


def make_detector() -> RTDetrForObjectDetection:
    """Return the untrained detector."""
    backbone = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[48, 96, 96],
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=10,
        num_denoising=0,
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: number for number, name in enumerate(CLASS_NAMES)},
    )
    return RTDetrForObjectDetection(config)


def as_tensors(scenes: Sequence[Scene]) -> Scenes:
    """Return scenes as tensors; boxes are (centre x, centre y, width, height) as shares of the picture's sides."""
    pixels = torch.stack([torch.from_numpy(scene.pixels).permute(2, 0, 1) for scene in scenes])
    classes = torch.full((len(scenes), MOST_SHAPES), -1)
    boxes = torch.zeros(len(scenes), MOST_SHAPES, 4)
    sides = torch.tensor([WIDTH_PX, HEIGHT_PX, WIDTH_PX, HEIGHT_PX])
    for number, scene in enumerate(scenes):
        for place, thing in enumerate(scene.things):
            x0, y0, x1, y1 = thing.box
            classes[number, place] = CLASS_NAMES.index(thing.class_name)
            boxes[number, place] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / sides
    return pixels, classes, boxes


def batch_of(scenes: Scenes, picks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs float32 [n, 3, 96, 128], 0..1, classes and boxes of scenes, half of them mirrored."""
    pixels, classes, boxes = scenes[0][picks].float() / 255, scenes[1][picks], scenes[2][picks].clone()
    mirrored = torch.rand(len(picks), generator=generator) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(-1)
    boxes[mirrored, :, 0] = 1 - boxes[mirrored, :, 0]
    return pixels, classes, boxes


def detector_loss(model: RTDetrForObjectDetection, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the loss of every place of the encoder and of every layer of the decoder."""
    pixels, classes, wanted = batch
    out = model(pixel_values=pixels)
    places = out.enc_outputs_coord_logits.sigmoid()
    loss = detection_loss(out.enc_outputs_class, places, classes, wanted, rounds=ENCODER_MATCHES)
    for layer in range(out.intermediate_logits.shape[1]):
        logits, boxes = out.intermediate_logits[:, layer], out.intermediate_reference_points[:, layer]
        loss = loss + detection_loss(logits, boxes, classes, wanted, rounds=1)
    return loss


def train_detector(
    model: RTDetrForObjectDetection, scenes: Scenes, *, steps: int, batch_size: int, peak_lr: float
) -> None:
    """Train in place."""
    generator = torch.Generator().manual_seed(0)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, peak_lr, total_steps=steps, pct_start=0.1)
    start, seen = time.monotonic(), 0.0
    model.train()
    for step in range(steps):
        picks = torch.randint(len(scenes[0]), (batch_size,), generator=generator)
        loss = detector_loss(model, batch_of(scenes, picks, generator))
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        schedule.step()
        seen = 0.95 * seen + 0.05 * float(loss) if step else float(loss)
        if (step + 1) % 100 == 0:
            print(f"detector: step {step + 1}/{steps}: loss {seen:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval()


def make_describer() -> ResNetModel:
    """Return the untrained describer: a small ResNet whose last map has a position for every 8 pixels."""
    return ResNetModel(
        ResNetConfig(embedding_size=24, hidden_sizes=[24, FEATURE_DIM], depths=[2, 3], layer_type="basic")
    )


class Reader(nn.Module):
    """Colour and shape, read off a RoI's feature by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(FEATURE_DIM, len(COLOURS) + len(SHAPES))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits by name, of features [m, FEATURE_DIM]."""
        # Made small here, so that they become large: the trainer puts 2,048 numbers of a RoI's place beside them.
        colour, shape = self.logits(FEATURE_SCALE * features).split([len(COLOURS), len(SHAPES)], dim=1)
        return {"colour": colour, "shape": shape}


def train_describer(describer: ResNetModel, scenes: Scenes, *, steps: int, batch_size: int, peak_lr: float) -> Reader:
    """Train in place to tell colour and shape of boxes, and return what reads them."""
    generator = torch.Generator().manual_seed(1)
    reader = Reader()
    adamw = torch.optim.AdamW([*describer.parameters(), *reader.parameters()], lr=peak_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, peak_lr, total_steps=steps, pct_start=0.1)
    describer.train()
    for step in range(steps):
        picks = torch.randint(len(scenes[0]), (batch_size,), generator=generator)
        pixels, classes, wanted = batch_of(scenes, picks, generator)
        # A detector's boxes are not exact.
        drawn = wanted * (1 + 0.08 * torch.randn(wanted.shape, generator=generator))
        logits = reader(describe(describer, pixels, classes, drawn))
        truth = truths(classes)
        loss = torch.stack([functional.cross_entropy(logits[name], truth[name]) for name in truth]).sum()
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"describer: step {step + 1}/{steps}: loss {float(loss):.3f}", flush=True)
    describer.eval()
    return reader


def describe(describer: ResNetModel, pixels: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
    """Return the features f32 [m, FEATURE_DIM] of all things of the scenes."""
    maps = describer(pixel_values=pixels).last_hidden_state
    scale = (maps.shape[2] / HEIGHT_PX, maps.shape[3] / WIDTH_PX)
    in_pixels = corners(boxes) * torch.tensor([WIDTH_PX, HEIGHT_PX, WIDTH_PX, HEIGHT_PX])
    return torch.cat([roi_align_mean(maps[i], in_pixels[i][classes[i] >= 0], scale=scale) for i in range(len(maps))])


def truths(classes: Tensor) -> dict[str, Tensor]:
    """Return what is to be read off the features of all things, i64 [m] each."""
    numbers = classes[classes >= 0]
    return {"colour": numbers // len(SHAPES), "shape": numbers % len(SHAPES)}


def measure(folder: Path, scenes: Sequence[Scene]) -> DetectorFigures:
    """Return the figures of the detector in `folder`, with a tour's settings."""
    settings = BuildConfig().updated(tomllib.loads(BUILD_SETTINGS))
    detector = HuggingFaceDetector(str(folder), selection_rule(settings), batch_size=settings.batch_size)
    return measure_detector(detector, scenes)


@torch.no_grad()
def measure_describer(describer: ResNetModel, reader: Reader, scenes: Scenes) -> dict[str, float]:
    """Return how often colour and shape are read right, 0..1 each."""
    logits = reader(describe(describer, scenes[0].float() / 255, scenes[1], scenes[2]))
    truth = truths(scenes[1])
    return {name: float((logits[name].argmax(1) == truth[name]).float().mean()) for name in truth}


def save(model: PreTrainedModel, processor: object, folder: Path) -> None:
    """Write a model in float16 with its image processor."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    model.float()


def main() -> None:
    """Train, write, measure what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/tour-models"))
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--detector-steps", type=int, default=2400)
    parser.add_argument("--describer-steps", type=int, default=600)
    options = parser.parse_args()
    start = time.monotonic()
    held_out = [make_scene(MEASURING_SEED, number) for number in range(MEASURED_SCENES)]
    scenes = as_tensors([make_scene(TRAINING_SEED, number) for number in range(options.scenes)])
    torch.manual_seed(0)
    detector = make_detector()
    train_detector(detector, scenes, steps=options.detector_steps, batch_size=32, peak_lr=2e-3)
    size = {"height": HEIGHT_PX, "width": WIDTH_PX}
    save(detector, RTDetrImageProcessorPil(size=size, do_normalize=False), options.out / "detector")
    torch.manual_seed(0)
    describer = make_describer()
    fewer = scenes[0][:DESCRIBER_SCENES], scenes[1][:DESCRIBER_SCENES], scenes[2][:DESCRIBER_SCENES]
    reader = train_describer(describer, fewer, steps=options.describer_steps, batch_size=32, peak_lr=3e-3)
    save(describer, ViTImageProcessorPil(do_normalize=False), options.out / "describer")
    took = time.monotonic() - start
    found = measure(options.out / "detector", held_out)
    read = measure_describer(describer, reader, as_tensors(held_out))
    report = REPORT.format(
        scenes=MEASURED_SCENES,
        things=sum(len(scene.things) for scene in held_out),
        **asdict(found),
        **read,
        minutes=took / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    (options.out / "measured.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
