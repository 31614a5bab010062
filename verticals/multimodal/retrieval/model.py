"""The network: encoders and their heads. It ships whole, normalisation included, so that an artifact needs pixels and tokens.

Legend: N picture, M text, S sound, T sample, L token, P place, C channel of a word, D numbers of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import Config
from core.contract import TensorSpec
from core.errors import ConfigError
from core.inference.parts import Parts
from verticals.multimodal.retrieval.audio import AudioConfig, AudioEncoder
from verticals.multimodal.retrieval.encoders import Pooling, TextEncoder, TextFeatures, VisionEncoder, VisionFeatures
from verticals.multimodal.retrieval.heads import Crowd, HeadConfig, PictureHead, TextHead, embedding
from verticals.multimodal.retrieval.matching import MatchConfig, MatchHead
from verticals.multimodal.retrieval.tokens import Tokenizer
from verticals.multimodal.retrieval.weights import HUB, NONE, Preprocessing, resolve

IMAGENET = "imagenet"


class VisionConfig(Config):
    """The encoder of pictures."""

    name: str = "resnet50"
    """A network of timm or torchvision."""
    weights: str = HUB
    """`hub`, `none`, or a local path."""
    preprocessing: Preprocessing | None = None
    """How pictures are prepared, where the weights do not say it."""
    classes: str = ""
    """Names of the network's own classes: `imagenet`, or a text file with a name a line; empty leaves its classes out."""
    frozen: bool = True
    """Whether it stays as it is: then its features are made once."""


class TextConfig(Config):
    """The encoder of texts."""

    name: str = "bert-base"
    """A network of transformers."""
    weights: str = HUB
    """`hub`, `none`, or a local folder."""
    architecture: dict[str, Any] = {}
    """With `none`: settings of the network that differ from its kind's defaults."""
    pooling: Pooling | None = None
    """How words become a text, where the weights do not say it."""
    most_tokens: int = Field(64, ge=4)
    """That are read of a text."""
    vocabulary: int = Field(2000, ge=16)
    """With `none`: words of the tokenizer that is trained on the captions."""
    frozen: bool = True
    """Whether it stays as it is."""


class ModelConfig(Config):
    """The network."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    heads: HeadConfig = HeadConfig()
    match: MatchConfig = MatchConfig()
    audio: AudioConfig = AudioConfig()


class Encoders(NamedTuple):
    """What a configuration names, with its weights."""

    vision: VisionEncoder
    text: TextEncoder
    tokenizer: Tokenizer
    audio: AudioEncoder | None = None


class Heads(nn.Module):
    """What is learned above the encoders."""

    def __init__(
        self, picture: PictureHead, text: TextHead, match: MatchHead | None, sound: PictureHead | None, *, width: int
    ) -> None:
        """
        Args:
            width: numbers of an embedding.
        """
        super().__init__()
        self.picture, self.text, self.match, self.sound = picture, text, match, sound
        self.captions, self.pictures = Crowd(width), Crowd(width)

    @property
    def of_pictures(self) -> list[PictureHead]:
        """All that begin where the words for a picture's classes are."""
        return [self.picture, *([self.match.picture] if self.match is not None else [])]


class Embedded(NamedTuple):
    """Pictures and texts in their space, head by head."""

    pictures: Tensor
    """[N, heads, D]"""
    texts: Tensor
    """[M, heads, D]"""
    places: Tensor | tuple[()] = ()
    """[N, P, C] where there is a head that matches."""
    sounds: Tensor | tuple[()] = ()
    """[S, heads, D] where there is an encoder of sounds."""


class RetrievalNet(nn.Module):
    """Pictures, texts and sounds to embeddings of one space."""

    def __init__(
        self, vision: VisionEncoder, text: TextEncoder, config: ModelConfig, audio: AudioEncoder | None = None
    ) -> None:
        """Raises ConfigError where a head does not fit the encoders."""
        super().__init__()
        self.vision, self.text, self.audio = vision, text, audio
        self.num_samples = config.audio.num_samples
        width = config.heads.width or text.num_channels
        num_classes = vision.num_classes if config.vision.classes else 0
        if num_classes and width != text.num_channels:
            raise ConfigError(
                f"model.heads.width {width}: with model.vision.classes a picture begins where the text encoder puts the words for its "
                f"classes; allowed is {text.num_channels}, its own width (0), or no model.vision.classes"
            )
        self.width = width * config.heads.num
        self.heads = Heads(
            PictureHead(vision.num_pooled, num_classes, width, config.heads),
            TextHead(text.num_channels, width, config.heads),
            _match_head(vision, text, config, num_classes) if config.match.grid else None,
            PictureHead(audio.num_pooled, 0, width, config.heads) if audio is not None else None,
            width=self.width,
        )

    def forward(self, seen: VisionFeatures, read: Tensor, samples: Tensor) -> Embedded:
        """What the encoders made of N pictures, texts' vectors [M, C], and sounds [S, T] themselves.

        The head that matches learns from what the encoders see; they do not learn from it.
        """
        match = self.heads.match
        return Embedded(
            self.heads.picture(seen),
            self.heads.text(read),
            () if match is None else match.places(VisionFeatures(*(part.detach() for part in seen))),
            () if self.audio is None else self.hear(samples),
        )

    def hear(self, samples: Tensor) -> Tensor:
        """[S, T] -> [S, heads, D]"""
        pooled = self.audio(samples)  # type: ignore[misc]
        made: Tensor = self.heads.sound(VisionFeatures(pooled, pooled[:, None], pooled[:, :0]))  # type: ignore[misc]
        return made


class PicturePart(nn.Module):
    """A picture to its embedding."""

    def __init__(self, network: RetrievalNet) -> None:
        super().__init__()
        self.vision, self.head, self.match = network.vision, network.heads.picture, network.heads.match
        self.captions = network.heads.captions
        size = network.vision.preprocessing.size
        self.inputs = (TensorSpec("picture", ("N", 3, size, size), "uint8"),)
        self.outputs = (
            TensorSpec("picture_embedding", ("N", network.width)),
            TensorSpec("picture_level", ("N",)),
            *_places_spec(network),
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        seen = self.vision(picture)
        made = embedding(self.head(seen))
        return (made, self.captions(made), *([] if self.match is None else [self.match.places(seen)]))


class TextPart(nn.Module):
    """Tokens to their embedding."""

    def __init__(self, network: RetrievalNet) -> None:
        super().__init__()
        self.text, self.head, self.pictures = network.text, network.heads.text, network.heads.pictures
        self.inputs = (TensorSpec("tokens", ("M", "L"), "int64"), TensorSpec("token_mask", ("M", "L"), "bool"))
        self.longest = {"L": network.text.most_tokens}
        self._gives_words = network.heads.match is not None
        words = [_words_spec(network)] if self._gives_words else []
        self.outputs = (
            TensorSpec("text_embedding", ("M", network.width)),
            TensorSpec("text_level", ("M",)),
            *words,
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        read: TextFeatures = self.text(tokens, mask)
        made = embedding(self.head(read.pooled))
        return (made, self.pictures(made), *([read.words * mask[..., None]] if self._gives_words else []))


class SoundPart(nn.Module):
    """Samples to the embedding of their sound."""

    def __init__(self, network: RetrievalNet) -> None:
        super().__init__()
        self.network = network
        self.inputs = (TensorSpec("sound", ("S", network.num_samples)),)
        self.outputs = (TensorSpec("sound_embedding", ("S", network.width)),)

    def forward(self, samples: Tensor) -> Tensor:
        return embedding(self.network.hear(samples))


class MatchPart(nn.Module):
    """Places of pictures and words of texts to how well they match, each with each. Where there is no word there are zeros."""

    def __init__(self, network: RetrievalNet, match: MatchHead) -> None:
        super().__init__()
        self.match = match
        self.inputs = (*_places_spec(network), _words_spec(network))
        self.longest = {"L": network.text.most_tokens}
        self.outputs = (TensorSpec("match", ("N", "M")),)

    def forward(self, places: Tensor, words: Tensor) -> Tensor:
        made: Tensor = self.match(places, words, words.abs().amax(-1) > 0)
        return made


def _places_spec(network: RetrievalNet) -> tuple[TensorSpec, ...]:
    match = network.heads.match
    return () if match is None else (TensorSpec("places", ("N", match.num_places, network.text.num_channels)),)


def _words_spec(network: RetrievalNet) -> TensorSpec:
    return TensorSpec("words", ("M", "L", network.text.num_channels))


def pair_form(network: RetrievalNet) -> Parts:
    """The network as a Session runs it: pictures, texts, and what belongs together, apart."""
    parts: dict[str, nn.Module] = {"picture": PicturePart(network), "text": TextPart(network)}
    if network.heads.match is not None:
        parts["match"] = MatchPart(network, network.heads.match)
    if network.audio is not None:
        parts["sound"] = SoundPart(network)
    return Parts(parts)


def encoders_of(config: ModelConfig, captions: Sequence[str], *, seed: int) -> Encoders:
    """
    Args:
        captions: of training, for a tokenizer that has to be made.
        seed: of random weights.

    Raises:
        ConfigError: a network, weights, preprocessing or tokenizer that cannot be had, or do not fit.
        ArtifactError: weights that are damaged.
    """
    given = config.text
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vision = VisionEncoder(
            config.vision.name,
            weights=config.vision.weights,
            preprocessing=config.vision.preprocessing,
            classes=bool(config.vision.classes),
        )
        if given.weights == NONE:
            tokenizer = Tokenizer.train(captions, size=given.vocabulary, most=given.most_tokens)
            settings = {"vocab_size": tokenizer.num_words, **given.architecture}
        else:
            tokenizer, settings = _tokenizer(given.name, given.weights, given.most_tokens), given.architecture
        text = TextEncoder(given.name, weights=given.weights, architecture=settings, pooling=given.pooling)
        audio = _audio(config.audio, config.audio.weights)
    text.check(tokenizer)
    for encoder, frozen in ((vision, config.vision.frozen), (text, given.frozen)):
        encoder.requires_grad_(not frozen)
    return Encoders(vision, text, tokenizer, audio)


def constants_of(encoders: Encoders) -> dict[str, Any]:
    """What ships beside the weights: enough to build the network again, and to prepare what it is given."""
    return {
        "preprocessing": encoders.vision.preprocessing.model_dump(mode="json"),
        "text": {"architecture": encoders.text.architecture, "pooling": encoders.text.pooling},
        "tokenizer": encoders.tokenizer.json,
        "most_tokens": encoders.tokenizer.most,
    }


def network_of(config: ModelConfig, made: Mapping[str, Any]) -> RetrievalNet:
    """The network without weights."""
    vision = VisionEncoder(
        config.vision.name,
        weights=NONE,
        preprocessing=Preprocessing.from_record(made["preprocessing"]),
        classes=bool(config.vision.classes),
    )
    text = TextEncoder(
        config.text.name, weights=NONE, architecture=made["text"]["architecture"], pooling=made["text"]["pooling"]
    )
    return RetrievalNet(vision, text, config, _audio(config.audio, NONE))


def _audio(config: AudioConfig, weights: str) -> AudioEncoder | None:
    return AudioEncoder(config.name, weights=weights, num_bands=config.num_bands) if config.name else None


def _match_head(vision: VisionEncoder, text: TextEncoder, config: ModelConfig, num_classes: int) -> MatchHead:
    """Raises ConfigError where the encoder's places are no square."""
    num_side, wanted = math.isqrt(vision.num_places), config.match
    if num_side**2 != vision.num_places or num_side < wanted.grid:
        raise ConfigError(
            f"model.match.grid {wanted.grid}: {config.vision.name} gives {vision.num_places} places; allowed are networks that give a "
            f"square of them, and up to as many a side; 0 leaves the head out"
        )
    alone = HeadConfig(dropout=wanted.dropout)
    width = text.num_channels
    picture = PictureHead(vision.num_pooled, num_classes, width, alone)
    return MatchHead(num_side, vision.num_channels, picture, width, wanted)


def class_names(given: str, count: int) -> list[str]:
    """
    Args:
        given: `imagenet`, or a text file with a name a line.
        count: that the network has.

    Raises:
        ConfigError: not so many names, or none.
    """
    if given == IMAGENET:
        from torchvision.models import ResNet50_Weights

        names = list(ResNet50_Weights.DEFAULT.meta["categories"])
    else:
        try:
            names = [
                line.strip()
                for line in Path(given).expanduser().read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.vision.classes {given!r} cannot be read ({error}); give {IMAGENET}, or a text file"
            ) from None
    if len(names) != count:
        raise ConfigError(
            f"model.vision.classes {given!r} has {len(names)} names, the network {count} classes; give a name for each"
        )
    return names


def _tokenizer(name: str, weights: str, most: int) -> Tokenizer:
    if weights == HUB:
        from transformers import AutoTokenizer

        from verticals.multimodal.retrieval.encoders import fetching

        with fetching(name):
            fast = AutoTokenizer.from_pretrained("bert-base-uncased" if name == "bert-base" else name, use_fast=True)
        return Tokenizer(fast.backend_tokenizer.to_str(), most=most)
    return Tokenizer.read(resolve(weights), most=most)
