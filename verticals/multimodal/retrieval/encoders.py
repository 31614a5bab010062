"""Encoders: any network of timm or torchvision for pictures, any of transformers for texts, by name.

Each gives a vector of the whole and vectors of its parts: places of a picture, words of a text.

Legend: B example, C channel, P place, L token, K class of the network's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from core.errors import ArtifactError, ConfigError
from verticals.multimodal.retrieval import weights as sources
from verticals.multimodal.retrieval.tokens import Tokenizer
from verticals.multimodal.retrieval.weights import HUB, NONE, Preprocessing

TORCHVISION = "torchvision/"
"""Begins a name where timm has a network of that name too."""
Pooling = Literal["mean", "first"]
"""A text's vector: the mean of its words', or the first token's."""


class VisionFeatures(NamedTuple):
    """What a picture is."""

    pooled: Tensor
    """[B, C]"""
    places: Tensor
    """[B, P, E]"""
    classes: Tensor
    """[B, K] what the network's own top says; K is 0 where it has none."""


class TextFeatures(NamedTuple):
    """What a text is."""

    pooled: Tensor
    """[B, C]"""
    words: Tensor
    """[B, L, C]"""


class VisionEncoder(nn.Module):
    """Pictures to features. Normalisation is part of it: what travels with the weights cannot be left behind."""

    def __init__(
        self,
        pretrained: str,
        *,
        weights: str = HUB,
        preprocessing: Preprocessing | None = None,
        classes: bool = False,
    ) -> None:
        """
        Args:
            pretrained: name of a network of timm or torchvision, as `resnet152`; `torchvision/resnet50` where both have it.
            weights: `hub`, `none`, or a local path.
            preprocessing: how pictures are prepared, where the weights do not say it; else it has to agree with them.
            classes: whether the network's own classes are features too.

        Raises:
            ConfigError: no such network, weights that cannot be had, or a preprocessing that is not known or not theirs.
            ArtifactError: weights that are damaged, or of another network.
        """
        super().__init__()
        network, known = _network(pretrained, weights)
        self.preprocessing = sources.agreed(known, preprocessing, weights)
        if weights not in (HUB, NONE):
            sources.fill(network, sources.resolve(weights), size=self.preprocessing.size)
        trunk = TimmTrunk if hasattr(network, "forward_head") else TorchvisionTrunk
        self.trunk = trunk(network, classes=classes)
        self._is_bgr = self.preprocessing.order == "BGR"
        values = (self.preprocessing.mean, self.preprocessing.deviation)
        for name, triple in zip(("mean", "deviation"), values, strict=True):
            ordered = triple[::-1] if self._is_bgr else triple
            self.register_buffer(name, torch.tensor(ordered).view(1, 3, 1, 1), persistent=False)
        size = self.preprocessing.size
        with torch.no_grad():
            made = self.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        self.num_pooled, self.num_classes = made.pooled.shape[1], made.classes.shape[1]
        self.num_places, self.num_channels = made.places.shape[1:]

    def forward(self, pictures: Tensor) -> VisionFeatures:
        """[B, 3, Y, X] uint8, red, green, blue, of `preprocessing.size`."""
        pixels = pictures.flip(1) if self._is_bgr else pictures
        features: VisionFeatures = self.trunk((pixels.float() - self.mean) / self.deviation)  # type: ignore[operator]
        return features


class TextEncoder(nn.Module):
    """Tokens to features."""

    def __init__(
        self,
        pretrained: str,
        *,
        weights: str = HUB,
        architecture: Mapping[str, Any] | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        """
        Args:
            pretrained: name of a network of transformers, as `bert-base-uncased`; the seeds' `bert-base` is that.
            weights: `hub`, `none`, or a local folder.
            architecture: with `none`, settings of the network's kind that differ from its defaults, or all with `model_type`.
            pooling: where the weights do not say it; else it has to agree with them. The mean where nobody says it.

        Raises:
            ConfigError: no such network, weights that cannot be had, or a pooling that is not theirs.
            ArtifactError: weights that are damaged.
        """
        super().__init__()
        self.network = _language_network(pretrained, weights, architecture or {})
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # a layer that nothing here asks
        known = _pooling_of(weights)
        if known and pooling and known != pooling:
            raise ConfigError(f"weights {weights} were made with pooling {known!r}, the configuration says {pooling!r}")
        self.pooling: Pooling = known or pooling or "mean"
        self.num_channels = int(self.network.config.hidden_size)
        self.num_words = int(self.network.get_input_embeddings().num_embeddings)
        self.most_tokens = _most_tokens(self.network)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `architecture` builds the same network of, without weights."""
        record: dict[str, Any] = json.loads(self.network.config.to_json_string(use_diff=True))
        return record

    def forward(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """
        Args:
            tokens: [B, L] int64.
            mask: [B, L] bool, where there is a token.
        """
        words = self.network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return TextFeatures(pool(words, mask, self.pooling), words)

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer that is not of these weights."""
        if not self.num_words - PADDING <= tokenizer.num_words <= self.num_words:
            raise ConfigError(
                f"the tokenizer has {tokenizer.num_words:,} words, the network {self.num_words:,}: they are of two models; "
                "take both from one folder"
            )
        if tokenizer.most > self.most_tokens:
            raise ConfigError(
                f"{tokenizer.most} tokens a text; the network reads {self.most_tokens}: lower model.text.most_tokens"
            )


def _most_tokens(network: Any) -> int:
    """Positions that there are, less those that RoBERTa's kind keeps for padding."""
    positions = int(getattr(network.config, "max_position_embeddings", 512))
    padded = next((part for name, part in network.named_modules() if name.endswith("position_embeddings")), None)
    padding = getattr(padded, "padding_idx", None)
    return positions if padding is None else positions - padding - 1


PADDING = 256
"""Words that a network may have more than its tokenizer: embeddings are padded to a round number."""


def pool(words: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[B, L, C] -> [B, C]"""
    if pooling == "first":
        return words[:, 0]
    weight = mask.unsqueeze(-1).to(words.dtype)
    return (words * weight).sum(1) / weight.sum(1).clamp(min=1)


class TimmTrunk(nn.Module):
    """A network of timm, whose features and classes are asked for apart."""

    def __init__(self, network: Any, *, classes: bool) -> None:
        super().__init__()
        if not classes:
            network.reset_classifier(0)
        self.network, self._classes = network, classes
        self._num_prefix = int(getattr(network, "num_prefix_tokens", 0) or 0)
        self._is_last = str(getattr(network, "output_fmt", None)) == "NHWC"

    def forward(self, pixels: Tensor) -> VisionFeatures:
        network: Any = self.network
        found = network.forward_features(pixels)
        pooled = network.forward_head(found, pre_logits=True)
        if found.dim() == 3:
            places = found[:, self._num_prefix :]
        else:
            places = found.flatten(1, 2) if self._is_last else found.flatten(2).transpose(1, 2)
        return VisionFeatures(pooled, places, network.forward_head(found) if self._classes else pooled[:, :0])


class TorchvisionTrunk(nn.Module):
    """A network of torchvision that has `features`, and what it does after them."""

    def __init__(self, network: Any, *, classes: bool) -> None:
        super().__init__()
        self.features, network.features = network.features, nn.Identity()
        self.top = network if classes else None
        self._is_last = hasattr(network, "permute")  # Swin's channels

    def forward(self, pixels: Tensor) -> VisionFeatures:
        found = self.features(pixels)
        places = found.flatten(1, 2) if self._is_last else found.flatten(2).transpose(1, 2)
        pooled = places.mean(1)
        return VisionFeatures(pooled, places, self.top(found) if self.top is not None else pooled[:, :0])


def _network(name: str, weights: str) -> tuple[Any, Preprocessing | None]:
    """A network by name, filled where its weights are the hub's, and what is known of how its pictures are prepared."""
    import timm

    if name.startswith(TORCHVISION) or not timm.is_model(name):
        return _torchvision(name.removeprefix(TORCHVISION), weights)
    network: Any
    if weights == HUB:
        with fetching(name):
            network = timm.create_model(name, pretrained=True)
    else:
        network = timm.create_model(name, pretrained=False)
    if weights in (HUB, NONE):
        return network, sources.of_timm(network.pretrained_cfg)
    return network, sources.of_file(sources.resolve(weights))


def _torchvision(name: str, weights: str) -> tuple[nn.Module, Preprocessing | None]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(
            f"model.vision.name {name!r}: neither timm nor torchvision has such a network for pictures; timm.list_models() and "
            "torchvision.models.list_models() name theirs"
        )
    default: Any = models.get_model_weights(name).DEFAULT
    if weights == HUB:
        with fetching(name):
            network = models.get_model(name, weights=default)
    else:
        network = models.get_model(name, weights=None)
    if not hasattr(network, "features"):
        raise ConfigError(
            f"model.vision.name {name!r}: of torchvision's networks those with `features` are taken; timm has it"
        )
    if weights in (HUB, NONE):
        return network, sources.of_torchvision(default.transforms())
    return network, sources.of_file(sources.resolve(weights))


class fetching:
    """Tells of a hub that cannot be reached, or does not know the name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # each hub's client has errors of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(
                f"weights of {self._name} cannot be fetched ({reason}); give their local path in `weights`, or `{NONE}`"
            ) from None


def _language_network(name: str, weights: str, architecture: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    if weights == NONE:
        settings = dict(architecture)
        kind = settings.pop("model_type", None) or name.partition("-")[0]
        try:
            config = AutoConfig.for_model(kind, **settings)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"model.text.name {name!r}: transformers knows no kind of network {kind!r} with these settings ({str(error)[:120]})"
            ) from None
        return AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    if weights == HUB:
        with fetching(name):
            return AutoModel.from_pretrained("bert-base-uncased" if name == "bert-base" else name)
    folder = sources.resolve(weights)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"weights {folder} have no config.json; give the folder that save_pretrained wrote")
    try:
        return AutoModel.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # safetensors', json's and torch's
        raise ArtifactError(f"weights {folder} cannot be loaded ({type(error).__name__}: {str(error)[:200]})") from None


def _pooling_of(weights: str) -> Pooling | None:
    """What sentence-transformers wrote beside local weights; None where it did not."""
    if weights in (HUB, NONE):
        return None
    path = sources.resolve(weights) / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("pooling_mode_cls_token"):
        return "first"
    if record.get("pooling_mode_mean_tokens"):
        return "mean"
    raise ConfigError(
        f"weights {weights} pool their words in a way that is not known here; allowed are mean and first token"
    )
