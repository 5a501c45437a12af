"""The golden case of the published model (tests/golden/vlbert/README.md), as a Batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlbert_data.token_file import TokenRuns
from vlbert_train.assemble import Layout, Words, pack
from vlbert_train.batch import Batch
from vlbert_train.masking import MaskedWords
from vlbert_train.rois import Rois

GOLDEN = Path(__file__).parent / "golden" / "vlbert"
HEADS = 4


def golden(name: str) -> dict[str, Tensor]:
    """Return the tensors of a golden file."""
    tensors: dict[str, Tensor] = load_file(GOLDEN / f"{name}.safetensors")
    return tensors


def golden_batch() -> Batch:
    """Return the golden inputs, put together by `pack` from what the supply gives it.

    Three things a shard would not give are put in afterwards: first and last tokens that are no [CLS] and [SEP],
    features in float32, and a whole image that ends a pixel early, as published.
    """
    given = golden("inputs")
    boxes, sizes = given["boxes"], given["im_info"][:, [0, 1, 0, 1]]
    real = boxes[:, :, 0] > -1.5  # [B, R]
    real[:, 0] = False  # the whole image
    captions = [row[row != 0] for row in given["text"]]
    texts = [row[row != 0] for row in given["aux_text"]]
    labels = [row[1 : len(text) - 1] for row, text in zip(given["mlm_labels"], captions, strict=True)]
    labels += [row[: len(text)] for row, text in zip(given["aux_mlm_labels"], texts, strict=True)]
    shown = [text[1:-1] for text in captions] + texts
    rois = Rois(
        features=cast(Any, None),  # not in a shard: given to the batch itself
        lengths=real.sum(dim=1).numpy(),
        geometry=(boxes[:, :, :4] / sizes[:, None])[real].numpy(),
        hidden=(given["mvrc_ops"] == 1)[real].numpy(),
        asked=np.flatnonzero(given["mvrc_labels"].sum(dim=2)[real].numpy() > 0.5),
        target_ids=np.tile(np.arange(13), (4, 1)),
        target_probs=given["mvrc_labels"][given["mvrc_labels"].sum(dim=2) > 0.5].numpy(),
    )
    packed = pack(_words(shown, labels), rois, Layout.of([len(captions)], [len(texts)]), np.arange(len(shown)))
    features = torch.cat([boxes[real][:, 4:], boxes[:, 0, 4:], torch.zeros(len(texts), boxes.shape[2] - 4)])
    batch = packed.batch(0, features, step=0)
    geometry = torch.cat([torch.from_numpy(rois.geometry), boxes[:, 0, :4] / sizes])
    return replace(batch, token_ids=torch.cat(captions + texts), roi_geometry=geometry)


def _words(shown: list[Tensor], labels: list[Tensor]) -> Words:
    ids, asked = torch.cat(shown), torch.cat(labels)
    lengths = [len(row) for row in shown]
    return Words(
        tokens=TokenRuns(
            ids=torch.where(asked < 0, ids, asked).numpy(),
            starts_word=np.ones(len(ids), np.bool_),
            cu_lengths=np.concatenate([[0], np.cumsum(lengths)]),
        ),
        masked=MaskedWords(shown=ids.numpy(), asked=np.flatnonzero(asked.numpy() >= 0)),
        cls_id=0,
        sep_id=0,
    )


def asking_everywhere(batch: Batch) -> Batch:
    """Return the batch with every word and every RoI asked, words in the order of `token_slots`."""
    every = torch.zeros(len(batch.token_slots), dtype=torch.int64)
    return replace(
        batch,
        word_targets=every,
        word_target_slots=batch.token_slots,
        word_target_with_image=batch.token_sequence < int(batch.has_image.sum()),
        roi_target_slots=batch.roi_slots,
        roi_target_ids=torch.zeros(len(batch.roi_slots), 1, dtype=torch.int64),
        roi_target_probs=torch.ones(len(batch.roi_slots), 1),
    )


def gradients(model: torch.nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return the gradient of every parameter of `model` after one backward pass."""
    model.zero_grad()
    torch.autograd.backward(loss())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
