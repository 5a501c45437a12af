"""Opening what is learned from. Promise: folders that do not fit together are refused before the first step.

Folders fit together where a class id and a feature mean the same in both: one label space, one describer.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.corpus import CorpusFolder
from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.shards.files import blake2b_json
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array, LabelSpace
from vlbert_data.windows import open_windows
from vlbert_train.captions import CaptionSet, kept_aside
from vlbert_train.config import PretrainConfig
from vlbert_train.inputs import load_fitting_tokenizer
from vlbert_train.sets import Meaning, Sets, TextSet
from vlbert_train.supply import Supply
from vlbert_train.tokens import Advance, TokenCache
from vlbert_train.truncation import text_limit

__all__ = ["Supply", "open_evaluation", "open_supply"]

# The width of features where there are only texts: that of the published VL-BERT.
USUAL_FEATURE_DIM = 2048


def open_supply(
    config: PretrainConfig, *, cache_dir: Path | None = None, advance: Advance = lambda done, total: None
) -> Supply:
    """Return the supply of a run.

    cache_dir, advance: see `TokenCache.open`.

    Raises:
        ConfigError: folders that do not fit together, another tokenizer, or nothing to learn from.
        ShardError: a folder that is unfinished, empty or damaged.
    """
    data = config.data
    folders = [_open_shards(path) for path in data.shards]
    held_out = [_open_shards(path) for path in data.val_shards]
    corpus = _open_corpus(data.corpus)
    tokenizer = _tokenizer(data.tokenizer, corpus)
    meaning = _meaning(folders + held_out, tokenizer, config)
    _refuse_validation_on_training(folders, held_out)
    caches = {id(f): TokenCache.open(f, tokenizer, cache_dir, advance) for f in folders + held_out}
    training, aside = [], []
    for folder in folders:
        kept = kept_aside(folder.index.image_ids, data.val_fraction) if data.val_fraction else None
        training.append((folder, caches[id(folder)], _where(kept, False)))
        if kept is not None:
            aside.append((folder, caches[id(folder)], _where(kept, True)))
    aside += [(folder, caches[id(folder)], None) for folder in held_out]
    return Supply(
        config,
        meaning,
        _identity(folders, corpus, meaning),
        training=Sets(captions=_captions(training), texts=_open_texts(corpus, tokenizer, config)),
        validation=Sets(captions=_captions(aside)),
        limit=config.run.validate_examples,
    )


def open_evaluation(
    shards: Sequence[str | Path],
    corpus: str | Path | None,
    config: PretrainConfig,
    *,
    cache_dir: Path | None = None,
    limit: int | None = None,
) -> Supply:
    """Return a supply that only measures: all images of `shards` and all of `corpus`, `limit` of each kind at most.

    config: the settings of the run that is measured; its own data are not opened.

    Raises:
        As `open_supply`.
    """
    folders = [_open_shards(path) for path in shards]
    texts = _open_corpus(corpus)
    tokenizer = _tokenizer(config.data.tokenizer, texts)
    meaning = _meaning(folders, tokenizer, config)
    caches = [TokenCache.open(folder, tokenizer, cache_dir) for folder in folders]
    captions = _captions([(folder, cache, None) for folder, cache in zip(folders, caches, strict=True)])
    return Supply(
        config,
        meaning,
        _identity(folders, texts, meaning),
        training=None,
        validation=Sets(captions=captions, texts=_open_texts(texts, tokenizer, config)),
        limit=limit,
    )


def _open_shards(path: str | Path) -> ShardFolder:
    folder = ShardFolder.open(path)
    if not len(folder):
        raise ShardError(f"{folder.path}: holds no images. Build it with vlb build-shards from a source that has some.")
    # Names and sizes only: a shard that is missing or cut short is met now and not hours later.
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder.path)}
    for number, entry in enumerate(folder.manifest.shards):
        if sizes.get(entry.file) != entry.bytes:
            folder.shard(number)
    return folder


def _open_corpus(path: str | Path | None) -> CorpusFolder | None:
    return None if path is None else CorpusFolder.open(path)


def _tokenizer(name: str, corpus: CorpusFolder | None) -> TextTokenizer:
    # After the folders: a name may have to be asked of a hub, which takes a minute where there is no network.
    return load_fitting_tokenizer(name, corpus)


def _open_texts(corpus: CorpusFolder | None, tokenizer: TextTokenizer, config: PretrainConfig) -> TextSet | None:
    if corpus is None:
        return None
    corpus.require_tokenizer(tokenizer.fingerprint, tokenizer.name)
    data = config.data
    windows = open_windows(corpus, length=text_limit(data), policy=data.text_windows, min_tokens=data.min_text_tokens)
    return TextSet(corpus=corpus, windows=windows)


def _captions(parts: Sequence[tuple[ShardFolder, TokenCache, Array | None]]) -> CaptionSet | None:
    found = CaptionSet(parts)
    return found if len(found) else None


def _where(kept: Array | None, side: bool) -> Array | None:
    return None if kept is None else np.flatnonzero(kept == side)


def _meaning(folders: Sequence[ShardFolder], tokenizer: TextTokenizer, config: PretrainConfig) -> Meaning:
    """Return what the numbers in all folders mean.

    Raises:
        ConfigError: two folders differ, or one lacks what the settings need.
    """
    for folder in folders[1:]:
        _refuse_difference(folders[0], folder)
    for folder in folders:
        needs_views = config.masking.leakage == "pixels" and config.masking.roi_share > 0 and folder.manifest.label_topk
        if needs_views and not folder.manifest.masked_views:
            raise ConfigError(
                f"{folder.path}: has no masked views, which masking.leakage=pixels needs. Build it with "
                "vlb build-shards --masked-views, or set masking.leakage=overlap."
            )
        if config.masking.roi_targets == "required" and not folder.manifest.label_topk:
            raise ConfigError(
                f"{folder.path}: stores features only, no classes of RoIs, which masking.roi_targets=required needs. "
                "Build it with a detector that gives classes, or set masking.roi_targets=auto to learn words alone."
            )
    first = folders[0].manifest if folders else None
    return Meaning(
        tokenizer=tokenizer,
        label_space=first.label_space if first else None,
        feature_dim=first.feature_dim if first else USUAL_FEATURE_DIM,
        labels_kept=max((folder.manifest.label_topk for folder in folders), default=0),
    )


def _refuse_difference(one: ShardFolder, other: ShardFolder) -> None:
    a, b = one.manifest, other.manifest
    if a.feature_dim != b.feature_dim:
        difference = f"features have {a.feature_dim} numbers in the first and {b.feature_dim} in the second"
    elif _fingerprint(a.label_space) != _fingerprint(b.label_space):
        difference = f"their label spaces differ: {_spaces(a.label_space, b.label_space)}"
    elif dict(a.describer) != dict(b.describer):
        difference = f"their features were made by other describers: {_first_difference(a.describer, b.describer)}"
    else:
        return
    raise ConfigError(
        f"{one.path} and {other.path} cannot be trained on together: {difference}. "
        "Build both with the same settings, or train on one."
    )


def _fingerprint(space: LabelSpace | None) -> str:
    return space.fingerprint() if space else "none"


def _spaces(a: LabelSpace | None, b: LabelSpace | None) -> str:
    if a is None or b is None:
        return "one has classes and the other has none"
    if a.num_classes != b.num_classes or a.name != b.name:
        return f"{a.name} with {a.num_classes} classes and {b.name} with {b.num_classes}"
    for number, (left, right) in enumerate(zip(a.class_names, b.class_names, strict=True)):
        if left != right:
            return f"class {number} is {left!r} in the first and {right!r} in the second"
    return f"the background is class {a.background_index} in the first and {b.background_index} in the second"


def _first_difference(a: Any, b: Any) -> str:
    names = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    return f"{names[0]} is {a.get(names[0])!r} in the first and {b.get(names[0])!r} in the second"


def _refuse_validation_on_training(folders: Sequence[ShardFolder], held_out: Sequence[ShardFolder]) -> None:
    known = {folder.manifest.content_hash: folder for folder in folders}
    for folder in held_out:
        if folder.manifest.content_hash in known:
            raise ConfigError(
                f"{folder.path}: to be validated on, but it holds the same images as "
                f"{known[folder.manifest.content_hash].path}, which is trained on. Use data.val_fraction to keep some "
                "of its images aside."
            )


def _identity(folders: Sequence[ShardFolder], corpus: CorpusFolder | None, meaning: Meaning) -> dict[str, str]:
    """Return hashes of what is learned from; where it lies does not matter."""
    return {
        "shards": blake2b_json([folder.manifest.content_hash for folder in folders]),
        "corpus": corpus.manifest.content_hash if corpus else "none",
        "tokenizer": meaning.tokenizer.fingerprint,
        "label_space": _fingerprint(meaning.label_space),
        "describer": blake2b_json(dict(folders[0].manifest.describer)) if folders else "none",
        "feature_dim": str(meaning.feature_dim),
    }
