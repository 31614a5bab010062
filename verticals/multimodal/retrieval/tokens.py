"""Text to tokens and back: the fast tokenizers of transformers, kept as JSON in a model's constants.

Legend: B text, L token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from core.errors import ArtifactError, ConfigError, DataError

MOST_CHARACTERS = 10_000
"""Of one text: what is longer is no sentence, and takes long to cut."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens(NamedTuple):
    """Texts as a network reads them."""

    ids: NDArray[np.int64]
    """[B, L] padded with 0."""
    mask: NDArray[np.bool_]
    """[B, L] where there is a token."""
    cut: tuple[bool, ...]
    """[B] whether the text had more tokens than a network reads."""


class Tokenizer:
    """Cuts texts as the weights' own tokenizer does."""

    def __init__(self, json: str, *, most: int) -> None:
        """
        Args:
            json: a `tokenizer.json`.
            most: tokens that are read of a text, the special ones among them.

        Raises:
            ArtifactError: it is no tokenizer.
        """
        try:
            self._fast = Fast.from_str(json)
        except Exception as error:  # the library's own kind is Exception
            raise ArtifactError(f"the tokenizer is damaged ({str(error)[:100]}); restore tokenizer.json") from None
        self._fast.no_padding()
        self._fast.no_truncation()
        self.json, self.most = self._fast.to_str(), most
        self._fast.enable_truncation(most)

    @classmethod
    def read(cls, folder: Path, *, most: int) -> Tokenizer:
        """Of a folder as transformers writes it. Raises ConfigError where it has none."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"weights {folder} have no tokenizer.json: which tokens their words are is not known. Save the tokenizer beside "
                "them: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
            )
        return cls(path.read_text(encoding="utf-8"), most=most)

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, most: int) -> Tokenizer:
        """The commonest words of these texts, and their letters for all other words: for a network that has no vocabulary yet.

        The same texts make the same one, which the library's own trainers do not promise.
        """
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        counts = Counter(
            word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
        )
        letters = sorted({letter for word in counts for letter in word})
        known = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
        words = [word for word in sorted(counts, key=lambda word: (-counts[word], word)) if len(word) > 1]
        known += words[: max(0, size - len(known))]
        fast = Fast(models.WordPiece({word: place for place, word in enumerate(known)}, unk_token="[UNK]"))
        fast.normalizer, fast.pre_tokenizer, fast.decoder = normalizer, splitter, decoders.WordPiece()
        fast.post_processor = processors.BertProcessing(*((mark, SPECIAL.index(mark)) for mark in ("[SEP]", "[CLS]")))
        return cls(fast.to_str(), most=most)

    @property
    def num_words(self) -> int:
        """Of the vocabulary, the special tokens among them."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """
        Raises:
            DataError: a text is empty, too long to be a sentence, or cannot be encoded as UTF-8.
        """
        for text in texts:
            check_text(text)
        encodings = self._fast.encode_batch(list(texts))
        length = max((len(one.ids) for one in encodings), default=1)
        ids, mask = np.zeros((len(texts), length), np.int64), np.zeros((len(texts), length), np.bool_)
        for row, one in enumerate(encodings):
            ids[row, : len(one.ids)] = one.ids
            mask[row, : len(one.ids)] = True
        return Tokens(ids, mask, tuple(bool(one.overflowing) for one in encodings))


def check_text(text: str) -> str:
    """The text without blanks around it. Raises DataError for what is none."""
    if not text.strip():
        raise DataError("the text is empty; give a sentence")
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"the text has {len(text):,} characters; allowed are {MOST_CHARACTERS:,}: give a sentence")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            "the text has half a character (a lone surrogate), which is no Unicode; send it again"
        ) from None
    return text.strip()
