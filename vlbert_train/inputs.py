"""What can be known of the data before anything slow. Promise: manifests are read, no network and no tensor.

A mistyped folder must not be found only after a minute of waiting for a hub.
"""

from collections.abc import Iterable
from pathlib import Path

from vlbert_data import corpus, manifest, weights
from vlbert_data.corpus import CorpusFolder, CorpusManifest
from vlbert_data.errors import ConfigError
from vlbert_data.tokenizer import TextTokenizer, load_tokenizer, refuse_missing
from vlbert_train.config import DataConfig, PretrainConfig

# The vocabulary of `DataConfig.tokenizer` where nothing else is given. Source: its config.json on the hub.
USUAL_VOCAB_SIZE = 30_522


def require_data(
    shards: Iterable[str | Path], corpus_path: str | Path | None, *, tokenizer: str | None = None
) -> CorpusManifest | None:
    """Return the corpus's manifest, once all folders are known to be what they are given as.

    Raises:
        ShardError: a folder that is not there (the nearest name is told), unfinished, or of something else.
        ConfigError: no tokenizer where one is said to be.
    """
    for path in shards:
        manifest.load(Path(path))
    found = None if corpus_path is None else corpus.load_manifest(Path(corpus_path))
    if tokenizer is not None:
        refuse_missing(tokenizer)
    return found


def require_inputs(config: PretrainConfig) -> None:
    """Return if all that these settings name on this machine is there and what it should be.

    Raises:
        ShardError: as `require_data`.
        ConfigError: no such tokenizer or weights, or a corpus that the usual tokenizer cannot have made, where no other
            one was named.
    """
    data = config.data
    found = require_data((*data.shards, *data.val_shards), data.corpus, tokenizer=data.tokenizer)
    if config.model.init_from:
        weights.refuse_missing(config.model.init_from)
    usual = data.tokenizer == DataConfig().tokenizer and not Path(data.tokenizer).exists()
    if found is not None and usual and found.tokenizer.get("vocab_size") != USUAL_VOCAB_SIZE:
        raise ConfigError(
            f"{data.corpus}: made with {_name(found)}, and {data.tokenizer}, which is taken where none is given, "
            f"has {USUAL_VOCAB_SIZE:,} tokens. Give the one that made it with --tokenizer."
        )


def load_fitting_tokenizer(name: str, found: CorpusFolder | None) -> TextTokenizer:
    """Return the tokenizer called `name`; found: the corpus that it has to fit, if there is one.

    Raises:
        ConfigError: it cannot be had; the message says what made the corpus.
    """
    try:
        return load_tokenizer(name)
    except ConfigError as error:
        if found is None:
            raise
        raise ConfigError(f"{error} {found.path} was made with {_name(found.manifest)}.") from error


def _name(found: CorpusManifest) -> str:
    return (
        f"a tokenizer of {found.tokenizer.get('vocab_size'):,} tokens (fingerprint {found.tokenizer_fingerprint[:12]})"
    )
