"""Tokenizers of Hugging Face, as this project needs them. Promise: a text gives the same ids wherever it is tokenised.

Special tokens never come out of a text: `[MASK]` written in a caption is a bracket, a word and a bracket. Two
tokenizers of equal fingerprint give equal ids. This module is the home of `tokenizers`; `transformers` is imported only
for names and folders that `tokenizers` alone cannot read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from vlbert_data.errors import ConfigError
from vlbert_data.hub import is_out_of_reach
from vlbert_data.nearby import is_no_hub_name, where_it_ends
from vlbert_data.shards.files import blake2b_json
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array

# What the roles are called where a tokenizer's own files do not say: as in BERT, as in RoBERTa, and their relatives.
USUAL_NAMES = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}
# The parts of a serialised tokenizer that decide which ids a text has.
DECIDING_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")
WORD_BEGIN = "\u2581"  # what SentencePiece writes for a space


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """The ids of the tokens that pretraining by masked words needs."""

    mask: int
    cls: int
    sep: int
    pad: int
    unk: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizer:
    """A tokenizer for captions and corpora; `vocab_size` is the highest id plus one."""

    name: str
    special_ids: SpecialIds
    vocab_size: int
    fingerprint: str
    backend: Tokenizer = field(repr=False, compare=False)
    _continues_word: Array | None = field(repr=False, compare=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype that ids are stored in: uint16 where it suffices, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> TokenRuns:
        """Return the tokens of each text, without [CLS] and [SEP], ids in `dtype`; an empty text has none."""
        if self._continues_word is None:
            return self._encode_slowly(texts)
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids, cu_lengths = self._flat(encodings)
        return TokenRuns(ids=ids, starts_word=~self._continues_word[ids], cu_lengths=cu_lengths)

    def _encode_slowly(self, texts: Sequence[str]) -> TokenRuns:
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        ids, cu_lengths = self._flat(encodings)
        if self.backend.pre_tokenizer is None:
            pairs = zip(encodings, texts, strict=True)
            starts = chain.from_iterable(_starts_after_space(encoding, text) for encoding, text in pairs)
        else:
            starts = chain.from_iterable(_starts_by_number(encoding.word_ids) for encoding in encodings)
        return TokenRuns(ids=ids, starts_word=np.fromiter(starts, np.bool_, len(ids)), cu_lengths=cu_lengths)

    def _flat(self, encodings: Sequence[Encoding]) -> tuple[Array, Array]:
        lists = [encoding.ids for encoding in encodings]
        cu_lengths = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(ids) for ids in lists], out=cu_lengths[1:])
        return np.fromiter(chain.from_iterable(lists), self.dtype, int(cu_lengths[-1])), cu_lengths

    def piece(self, token: int) -> str:
        """Return what a token stands for in a text, for people: `ing` for BERT's `##ing`, `cat` for ` cat`."""
        name = self.backend.id_to_token(token) or f"(token {token})"
        if isinstance(self.backend.model, WordPiece):
            prefix: str = self.backend.model.continuing_subword_prefix
            return name.removeprefix(prefix) or name
        if self.backend.decoder is None:
            return name.replace(WORD_BEGIN, "") or name
        return self.backend.decode([token], skip_special_tokens=False).strip() or name

    def serialised(self) -> str:
        """Return a text that `from_serialised` makes the same tokenizer of, in another process."""
        return json.dumps([self.name, asdict(self.special_ids), self.backend.to_str()])

    def facts(self) -> dict[str, Any]:
        """Return what a manifest keeps of this tokenizer, as JSON types."""
        return {
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "special_ids": asdict(self.special_ids),
        }


def from_serialised(text: str) -> TextTokenizer:
    """Return the tokenizer that `TextTokenizer.serialised` described."""
    name, ids, backend = json.loads(text)
    return _make(Tokenizer.from_str(backend), name, SpecialIds(**ids))


def load_tokenizer(spec: str | Path) -> TextTokenizer:
    """Return the tokenizer in a tokenizer.json, a vocab.txt or a folder, or the one of that name on the hub.

    A vocab.txt alone does not say whether it is cased: it is taken as lower-casing if no entry holds a capital letter.

    Raises:
        ConfigError: nothing there, not a tokenizer, or one that lacks a token for a mask, [CLS], [SEP], padding or
            unknown words.
    """
    path = Path(spec)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_vocabulary(path) if path.suffix == ".txt" else _from_json_file(path, {})
    refuse_missing(spec)
    return _from_transformers(str(spec))


def refuse_missing(spec: str | Path) -> None:
    """Raise a ConfigError where `spec` can only be a path of this machine and nothing is there; no hub is asked."""
    path = Path(spec)
    if not path.exists() and (path.suffix in (".json", ".txt") or is_no_hub_name(str(spec))):
        hint = where_it_ends(path) or "Give --tokenizer a tokenizer.json, a vocab.txt, a folder or a name on the hub."
        raise ConfigError(f"tokenizer {spec}: there is no such file or folder. {hint}")


def _from_folder(folder: Path) -> TextTokenizer:
    config = _read_config(folder / "special_tokens_map.json") | _read_config(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        return _from_json_file(folder / "tokenizer.json", _named_roles(config))
    if (folder / "vocab.txt").is_file() and not config:
        return _from_vocabulary(folder / "vocab.txt")
    if not config and not (folder / "config.json").is_file():
        raise ConfigError(
            f"tokenizer {folder}: holds no tokenizer.json, no vocab.txt and no tokenizer_config.json. "
            "Give the folder that save_pretrained wrote, or one of these files."
        )
    return _from_transformers(str(folder))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"tokenizer {path}: not JSON: {error}.") from error
    return facts if isinstance(facts, dict) else {}


def _named_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Return role -> token from the fields `mask_token` and so on, which hold a text or an object with its content."""
    found = {role: config.get(f"{role}_token") for role in USUAL_NAMES}
    contents = {role: token["content"] if isinstance(token, dict) else token for role, token in found.items()}
    return {role: token for role, token in contents.items() if isinstance(token, str)}


def _from_json_file(path: Path, roles: Mapping[str, str]) -> TextTokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {path}: not a readable JSON file: {error}.") from error
    try:
        backend = Tokenizer.from_str(text)
    except Exception as error:
        raise ConfigError(
            f"tokenizer {path}: JSON, but not of a tokenizer: {error}. Expected what tokenizers' save() writes."
        ) from error
    return _with_roles(backend, str(path), roles)


def _from_vocabulary(path: Path) -> TextTokenizer:
    try:
        # Not splitlines: it also cuts at characters that are entries of real vocabularies, such as U+2028.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {path}: not a readable UTF-8 file: {error}.") from error
    vocabulary = {token: number for number, token in enumerate(tokens)}
    special = [names[0] for names in USUAL_NAMES.values() if names[0] in vocabulary]
    cased = any(token != token.lower() for token in vocabulary.keys() - set(special))
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _with_roles(backend, str(path), {})


def _from_transformers(name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name, local_files_only=is_out_of_reach())
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        hint = where_it_ends(Path(name)) or (
            "Where there is no network, give --tokenizer a tokenizer.json, a vocab.txt or a folder."
        )
        raise ConfigError(
            f"tokenizer {name}: no file or folder of that name here, and transformers cannot load it: {reason} {hint}"
        ) from error
    if not found.is_fast:
        raise ConfigError(f"tokenizer {name}: {type(found).__name__} has no fast version, which vlb needs.")
    roles = {role: getattr(found, f"{role}_token", None) for role in USUAL_NAMES}
    return _with_roles(found.backend_tokenizer, name, {role: token for role, token in roles.items() if token})


def _with_roles(backend: Tokenizer, name: str, roles: Mapping[str, str]) -> TextTokenizer:
    ids, missing = {}, []
    for role, usual in USUAL_NAMES.items():
        candidates = (roles[role],) if role in roles else usual
        known = [number for token in candidates if (number := backend.token_to_id(token)) is not None]
        if known:
            ids[role] = known[0]
        else:
            missing.append(f"{role} ({' or '.join(candidates)})")
    if missing:
        raise ConfigError(
            f"tokenizer {name}: has no token for {', '.join(missing)}. "
            "Masked-word pretraining needs these; take a tokenizer of a BERT-like model."
        )
    return _make(backend, name, SpecialIds(**ids))


def _make(backend: Tokenizer, name: str, special_ids: SpecialIds) -> TextTokenizer:
    own = Tokenizer.from_str(backend.to_str())
    own.no_truncation()
    own.no_padding()
    parts = json.loads(own.to_str())
    deciding = {part: parts[part] for part in DECIDING_PARTS}
    # Not part of the serialised form: without it, text that looks like a special token becomes one.
    own.encode_special_tokens = True
    vocabulary = own.get_vocab(with_added_tokens=True)
    return TextTokenizer(
        name=name,
        special_ids=special_ids,
        vocab_size=max(vocabulary.values()) + 1,
        fingerprint=blake2b_json([deciding, asdict(special_ids)]),
        backend=own,
        _continues_word=_continuing_pieces(own, vocabulary),
    )


def _continuing_pieces(backend: Tokenizer, vocabulary: Mapping[str, int]) -> Array | None:
    """Return bool [vocab_size], True for pieces that never begin a word; None where ids alone do not tell.

    They tell in BERT's own scheme: its pre-tokenizer cuts at every `#`, so `##` begins no word of a text.
    """
    if not (isinstance(backend.model, WordPiece) and isinstance(backend.pre_tokenizer, BertPreTokenizer)):
        return None
    prefix = backend.model.continuing_subword_prefix
    continues = np.zeros(max(vocabulary.values()) + 1, np.bool_)
    continues[[number for token, number in vocabulary.items() if token.startswith(prefix)]] = True
    for token in backend.get_added_tokens_decoder():
        continues[token] = False
    return continues


def _starts_by_number(word_ids: Sequence[int | None]) -> list[bool]:
    """Return which tokens begin a word: those whose word is not that of the token before."""
    before = chain((None,), word_ids)
    return [word is None or word != last for word, last in zip(word_ids, before, strict=False)]


def _starts_after_space(encoding: Encoding, text: str) -> list[bool]:
    """Return which tokens begin a word where the tokenizer itself knows no words: those that follow a space."""
    starts = []
    for (begin, end), token in zip(encoding.offsets, encoding.tokens, strict=True):
        leads = begin == 0 or text[begin - 1].isspace() or text[begin:end][:1].isspace()
        starts.append(leads or token.startswith(WORD_BEGIN))
    return starts
