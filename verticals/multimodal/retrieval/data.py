"""The application's data: captioned pictures by side, and batches of pairs.

Of frozen encoders the features are made once; else pictures are decoded as they are needed. N picture, S sound, T sample, M caption.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.ahead import ahead
from core.data.pictures import Picture, read_picture
from core.errors import ConfigError, DataError
from verticals.multimodal.retrieval.audio import Wave, parts_of_sound, read_sound
from verticals.multimodal.retrieval.config import RetrievalConfig
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.features import BATCH, Features, features_of
from verticals.multimodal.retrieval.model import Encoders, encoders_of
from verticals.multimodal.retrieval.pairs import Pair
from verticals.multimodal.retrieval.prepare import WHOLE, View, prepared, random_view
from verticals.multimodal.retrieval.sampler import PairSampler, nearest
from verticals.multimodal.retrieval.synthetic import write_dataset
from verticals.multimodal.retrieval.task import Batch, FeatureBatch, PixelBatch

NEIGHBOURS = 32
"""Look-alikes of a picture that are known."""
WORDS = 512
"""Numbers by which captions are compared where no text encoder is there to do it."""


class RetrievalData:
    """Pairs by split, and batches of them."""

    def __init__(self, config: RetrievalConfig, dataset: Dataset | None = None) -> None:
        """
        Args:
            dataset: to judge a model by; where None, the configuration's is opened, to train one.

        Raises:
            ConfigError: a setting that is for frozen encoders alone.
            DataError: the first fault of the data set, or too few pictures.
            LeakError: a picture on two sides of the split.
        """
        self.config = config
        for name, given in (
            ("sampler.cache", config.sampler.cache),
            ("model.vision.classes", config.model.vision.classes),
        ):
            if given and not self.is_frozen:
                raise ConfigError(
                    f"{name} {given!r} is for encoders that stay as they are; set model.vision.frozen=true and model.text.frozen=true "
                    "too, or leave it empty"
                )
        if dataset is not None:
            self.dataset = dataset
        elif config.data.sources:
            self.dataset = Dataset.open(config.data.sources[0], seed=config.data.split_seed).for_training()
        else:
            made = tempfile.mkdtemp(prefix="synthetic-")
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            write_dataset(config.data.synthetic, Path(made) / "synthetic")
            self.dataset = Dataset.open(Path(made) / "synthetic")
        heard = [pair for pairs in self.dataset.sides.values() for pair in pairs if pair.is_sound]
        if heard and not config.model.audio.name:
            raise DataError(
                f"the data set has sounds ({heard[0].id}), and the model no encoder of them; set model.audio.name, or leave them out"
            )
        listed = self.dataset.sides.get("train", ())
        self._pairs = tuple(pair for pair in listed if not pair.is_sound)
        self._sounds = tuple(pair for pair in listed if pair.is_sound)
        if dataset is None and config.model.audio.name and not self._sounds:
            raise DataError(
                f"model.audio.name is {config.model.audio.name!r}, and the data set has no sounds to train on; add WAV files, or "
                "leave the setting empty"
            )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Reads every picture once."""
        return self.dataset.fingerprint

    @cached_property
    def encoders(self) -> Encoders:
        """The configuration's, with the weights that a training begins with. Raises ConfigError, ArtifactError."""
        captions = [caption for pair in (*self._pairs, *self._sounds) for caption in pair.captions]
        return encoders_of(self.config.model, captions, seed=self.config.fit.seed)

    @property
    def is_frozen(self) -> bool:
        """Whether both encoders stay as they are."""
        return self.config.model.vision.frozen and self.config.model.text.frozen

    @cached_property
    def features(self) -> Features:
        """Of the training pictures. Raises DataError, Unavailable."""
        sampler = self.config.sampler
        views = [
            [self._view(place, number) if number else WHOLE for number in range(sampler.views)]
            for place in range(len(self._pairs))
        ]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return features_of(self._pairs, views, *self.encoders[:3], folder=sampler.cache, device=device)

    def num_batches(self, *, world_size: int, epoch: int) -> int:
        """Raises ConfigError where a batch cannot be shared out evenly, DataError where there is none."""
        size = self.config.sampler.batch_size
        if size % world_size:
            raise ConfigError(
                f"a batch of {size} pictures over {world_size} processes; set sampler.batch_size to a multiple"
            )
        if len(self._pairs) < size:
            raise DataError(
                f"{len(self._pairs)} pictures to train on make no batch of {size}; lower sampler.batch_size, or give more"
            )
        return len(self._pairs) // size

    def train(self, *, rank: int, world_size: int, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch: the ranks' parts one after the other are the batch."""
        sampler = self.config.sampler
        self.num_batches(world_size=world_size, epoch=epoch)
        own = sampler.batch_size // world_size
        make = self._features if self.is_frozen else self._pixels
        batches = self._sampler.batches(epoch, self.config.fit.epochs)
        order = np.random.default_rng([sampler.seed, 4, epoch]).permutation(len(self._sounds))
        heard = np.resize(order, (len(batches), sampler.batch_size if len(order) else 0))
        part = slice(rank * own, (rank + 1) * own)
        tasks = (
            partial(make, chosen[part], sounds[part], epoch) for chosen, sounds in zip(batches, heard, strict=True)
        )
        return ahead(tasks, num_workers=sampler.num_workers)

    def samples(self, split: str) -> tuple[Pair, ...]:
        """The pictures of `train`, `validation` or `test`; `all` are those of every side. Raises DataError."""
        return tuple(pair for pair in self._side(split) if not pair.is_sound)

    def sounds(self, split: str) -> tuple[Pair, ...]:
        """The sounds of a side. Raises DataError."""
        return tuple(pair for pair in self._side(split) if pair.is_sound)

    def _side(self, split: str) -> tuple[Pair, ...]:
        if split == "all":
            return tuple(pair for pairs in self.dataset.sides.values() for pair in pairs)
        return self.dataset.pairs(split)

    def read(self, pair: Pair) -> Picture:
        """[Y, X, 3] uint8. Raises DataError, CapacityError."""
        return read_picture(pair.file.read(), num_channels=3, name=pair.id, most_pixels=self.config.data.most_pixels)

    def hear(self, pair: Pair) -> Wave:
        """[T] Raises DataError."""
        return read_sound(pair.file.read(), name=pair.id)

    @cached_property
    def _sampler(self) -> PairSampler:
        sampler = self.config.sampler
        neighbours = np.empty((len(self._pairs), 0), np.int64)
        if sampler.hard:
            neighbours = nearest(self._said, NEIGHBOURS)
        return PairSampler(neighbours, batch_size=sampler.batch_size, hard=sampler.hard, seed=sampler.seed)

    @property
    def _said(self) -> NDArray[np.float32]:
        """[N, C] what is said of each picture, as a vector."""
        if self.is_frozen:
            read, starts = self.read_captions.numpy(), self._starts
            return np.stack([read[starts[place] : starts[place + 1]].mean(0) for place in range(len(self._pairs))])
        from sklearn.feature_extraction.text import HashingVectorizer

        words = HashingVectorizer(n_features=WORDS, dtype=np.float32).fit_transform(
            " ".join(pair.captions) for pair in self._pairs
        )
        return np.asarray(words.toarray(), np.float32)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """[N + 1] place of each picture's first caption among all."""
        return np.concatenate([[0], np.cumsum([len(pair.captions) for pair in self._pairs])])

    @cached_property
    def read_captions(self) -> torch.Tensor:
        """[M, C] vectors of all captions to train on, of a frozen encoder."""
        return self.features.read(self.encoders.text.pooling)

    @cached_property
    def _read_of_sounds(self) -> torch.Tensor:
        """[M, C] vectors of all captions of sounds to train on, of a frozen encoder."""
        _, text, tokenizer, _ = self.encoders
        device = next(text.parameters()).device
        captions, made = [caption for pair in self._sounds for caption in pair.captions], []
        with torch.inference_mode():
            for first in range(0, len(captions), BATCH):
                tokens = tokenizer(captions[first : first + BATCH])
                ids, mask = (torch.from_numpy(array).to(device) for array in (tokens.ids, tokens.mask))
                made.append(text.eval()(ids, mask).pooled.cpu())
        return torch.cat(made)

    def _samples(self, sounds: NDArray[np.int64], epoch: int) -> torch.Tensor:
        """[S, T] a part of each, of longer ones another each time."""
        num, made = (
            self.config.model.audio.num_samples,
            [np.zeros((0, self.config.model.audio.num_samples), np.float32)],
        )
        for place in sounds.tolist():
            parts = parts_of_sound(self.hear(self._sounds[place]), num)
            chosen = np.random.default_rng([self.config.sampler.seed, 5, epoch, place]).integers(len(parts))
            made.append(parts[chosen : chosen + 1])
        return torch.from_numpy(np.concatenate(made))

    def _said_of_sounds(self, sounds: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """[S, captions] as `_captions`, among the captions of sounds."""
        starts = np.concatenate([[0], np.cumsum([len(pair.captions) for pair in self._sounds])])
        return self._drawn(sounds, self._sounds, starts, epoch)

    def _captions(self, chosen: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """[N, captions] places among all captions: some of each picture's, all of them in turn where it has fewer."""
        return self._drawn(chosen, self._pairs, self._starts, epoch)

    def _drawn(
        self, chosen: NDArray[np.int64], pairs: Sequence[Pair], starts: NDArray[np.int64], epoch: int
    ) -> NDArray[np.int64]:
        most, made = self.config.sampler.captions, []
        for place in chosen.tolist():
            random = np.random.default_rng([self.config.sampler.seed, 2, epoch, place])
            made.append(starts[place] + np.resize(random.permutation(len(pairs[place].captions)), most))
        return np.array(made, np.int64).reshape(-1, most)

    def _features(self, chosen: NDArray[np.int64], sounds: NDArray[np.int64], epoch: int) -> FeatureBatch:
        random = np.random.default_rng([self.config.sampler.seed, 3, epoch, int(chosen[0])])
        views = random.integers(self.config.sampler.views, size=len(chosen))
        captions = self._captions(chosen, epoch)
        features = self.features
        pooled, places, classes = (
            torch.from_numpy(
                np.stack([array[place, view] for place, view in zip(chosen, views, strict=True)]).astype(np.float32)
            )
            for array in (features.pooled, features.places, features.classes)
        )
        read = self.read_captions[torch.from_numpy(captions.ravel())]
        if len(sounds):
            said = self._said_of_sounds(sounds, epoch)
            read = torch.cat([read, self._read_of_sounds[torch.from_numpy(said.ravel())]])
        return FeatureBatch(
            pooled,
            places,
            classes,
            read,
            *self._words(captions.ravel()),
            *self._owners(chosen, sounds),
            self._samples(sounds, epoch),
        )

    def _words(self, captions: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """[M, L, C] and [M, L], where a head looks at words."""
        features = self.features
        mask = features.mask[captions]
        length = int(mask.sum(1).max()) if self.config.model.match.grid else 0
        words = features.words[captions, :length].astype(np.float32)
        return torch.from_numpy(words), torch.from_numpy(np.array(mask[:, :length]))

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """All captions to train on, of pictures and of sounds."""
        pictures, sounds = ([text for pair in pairs for text in pair.captions] for pairs in (self._pairs, self._sounds))
        return pictures, sounds

    def _pixels(self, chosen: NDArray[np.int64], sounds: NDArray[np.int64], epoch: int) -> PixelBatch:
        how = self.encoders.vision.preprocessing
        pictures = np.stack(
            [prepared(self.read(self._pairs[place]), how, self._view(place, epoch)) for place in chosen]
        )
        captions, said = self._texts
        texts = [captions[place] for place in self._captions(chosen, epoch).ravel()]
        texts += [said[place] for place in self._said_of_sounds(sounds, epoch).ravel()]
        tokens = self.encoders.tokenizer(texts)
        return PixelBatch(
            torch.from_numpy(pictures),
            torch.from_numpy(tokens.ids),
            torch.from_numpy(tokens.mask),
            *self._owners(chosen, sounds),
            self._samples(sounds, epoch),
        )

    def _owners(self, chosen: NDArray[np.int64], sounds: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of the pictures and sounds, and of the captions' ones."""
        numbers = np.concatenate([chosen, len(self._pairs) + sounds])
        return torch.from_numpy(numbers), torch.from_numpy(np.repeat(numbers, self.config.sampler.captions))

    def _view(self, place: int, number: int) -> View:
        sampler = self.config.sampler
        if sampler.least_area == 1 and not sampler.mirror:
            return WHOLE
        return random_view(sampler.least_area, sampler.mirror, np.random.default_rng([sampler.seed, 1, number, place]))
