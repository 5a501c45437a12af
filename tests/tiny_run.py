"""Small data and settings for whole training runs, and a run in a process of its own, for tests that kill it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from small_text import make_corpus, make_text, write_vocabulary

from vlbert_data.synthetic import write_shards
from vlbert_train.config import PretrainConfig

SETTINGS = (
    "run.steps=12",
    "run.checkpoint_every=4",
    "run.validate_every=6",
    "run.log_every=1",
    "run.device=cpu",
    "run.tensorboard=false",
    "data.caption_batch=6",
    "data.text_batch=4",
    "data.max_length=24",
    "data.val_fraction=0.2",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=24",
    "model.max_position_embeddings=40",
    "optim.peak_lr=3e-3",
    "optim.warmup_steps=3",
)
NO_DROPOUT = ("model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0")


@dataclass(frozen=True)
class Data:
    """Where the data of a tiny run lie."""

    shards: Path
    corpus: Path
    vocabulary: Path

    def config(self, *changes: str) -> PretrainConfig:
        """Return the settings of a tiny run on these data."""
        data = (f"data.shards={self.shards}", f"data.corpus={self.corpus}", f"data.tokenizer={self.vocabulary}")
        return PretrainConfig().assigned([*data, *SETTINGS, *changes])

    def options(self, *changes: str) -> list[str]:
        """Return the options of `vlb pretrain` that give the same."""
        named = ["--shards", str(self.shards), "--corpus", str(self.corpus), "--tokenizer", str(self.vocabulary)]
        return named + [part for change in (*SETTINGS, *changes) for part in ("--set", change)]


def make_data(folder: Path, *, num_images: int = 24) -> Data:
    """Make shards, a corpus and a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_vocabulary(folder / "vocab.txt")
    shards = write_shards(folder / "shards", num_images=num_images, feature_dim=12, num_classes=6, shard_size=10)
    (folder / "novel.txt").write_bytes(make_text(3, 40).encode())
    make_corpus([folder / "novel.txt"], vocabulary, folder / "corpus").run()
    return Data(shards=shards, corpus=folder / "corpus", vocabulary=vocabulary)


def lines_of(run: Path) -> list[dict[str, float]]:
    """Return the lines of figures of a run without what depends on the clock."""
    clocked = {"examples_per_s", "tokens_per_s", "data_wait"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clocked} for line in lines]


def main(folder: Path, out: Path, changes: Sequence[str]) -> None:
    """Start the run at `out`, or go on with it."""
    from vlbert_train import trainer
    from vlbert_train.distributed import World

    torch.set_num_threads(1)
    data = Data(shards=folder / "shards", corpus=folder / "corpus", vocabulary=folder / "vocab.txt")
    if (out / "config.json").exists():
        trainer.resume(out, lambda config: config, World(), trainer.Watch())
    else:
        trainer.start(out, data.config(*changes), World(), trainer.Watch())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
