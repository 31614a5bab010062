"""Retrieval as an `Application`: what the verbs, the tests and the service need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contract import Application, Arrays, Limits, Session
from core.data.pictures import read_picture
from core.distributed.norm import synced
from core.errors import DataError, LeakError
from core.inference.parts import torch_session
from verticals.multimodal.retrieval.answers import cost, predict
from verticals.multimodal.retrieval.audio import RATE, parts_of_sound, read_sound
from verticals.multimodal.retrieval.config import RECIPES, RetrievalConfig
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.evaluation import BATCH, evaluate, evaluate_again
from verticals.multimodal.retrieval.heads import CROWD
from verticals.multimodal.retrieval.model import (
    RetrievalNet,
    class_names,
    constants_of,
    network_of,
    pair_form,
)
from verticals.multimodal.retrieval.pairs import SOUNDS
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor
from verticals.multimodal.retrieval.prepare import prepared
from verticals.multimodal.retrieval.synthetic import SyntheticConfig, captions_of, draw, scenes, write_dataset
from verticals.multimodal.retrieval.task import RetrievalTask

PROMPT = "a photo of a {}"
"""A class as a text."""


def task(config: RetrievalConfig, data: RetrievalData) -> RetrievalTask:
    """The network around the data's encoders, its space begun where texts and the words for classes are."""
    encoders = data.encoders
    network = RetrievalNet(encoders.vision, encoders.text, config.model, encoders.audio)
    if not config.model.vision.frozen:
        synced(network.vision)
    if network.audio is not None:
        synced(network.audio)
    if data.is_frozen:
        with torch.inference_mode():
            _begin(network, config, data)
    return RetrievalTask(network, config.loss)


def _begin(network: RetrievalNet, config: RetrievalConfig, data: RetrievalData) -> None:
    """Where texts are on average, and the words for the classes that the vision encoder knows."""
    network.heads.text.mean.copy_(data.read_captions.mean(0))
    if network.heads.match is not None:
        network.heads.match.mean.copy_(network.heads.text.mean)
    if not config.model.vision.classes:
        return
    names = class_names(config.model.vision.classes, network.vision.num_classes)
    tokens = data.encoders.tokenizer([PROMPT.format(name) for name in names])
    device = next(network.text.parameters()).device
    words = network.text(torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device)).pooled.cpu()
    seen = torch.from_numpy(np.array(data.features.classes[:, 0], np.float32))
    for picture in network.heads.of_pictures:
        picture.class_words.copy_(words)
        picture.class_mean.copy_(picture.words(seen).mean(0))


def model(config: RetrievalConfig, made: Mapping[str, Any]) -> RetrievalNet:
    """The network without weights."""
    return network_of(config.model, made)


def constants(config: RetrievalConfig, data: RetrievalData, task: RetrievalTask) -> dict[str, Any]:
    """Preprocessing, tokenizer, and what makes a pair, by the validation pictures. The network gets to know what is like all."""
    made = constants_of(data.encoders)
    device = next(task.parameters()).device
    predictor = RetrievalPredictor(config, made, torch_session(pair_form(task.model), device=device))
    gather(task.model, predictor, data)
    return {**made, "match": evaluate_again(predictor, data, "validation")[1]}


def gather(network: RetrievalNet, predictor: RetrievalPredictor, data: RetrievalData) -> None:
    """Some training pictures and captions, that an embedding is compared with to know how alike it is to everything."""
    pairs, random = data.samples("train"), np.random.default_rng(0)
    chosen = [pairs[place] for place in random.permutation(len(pairs))[:CROWD]]
    captions = [one.captions[random.integers(len(one.captions))] for one in chosen]
    vectors = []
    for first in range(0, len(chosen), BATCH):
        part = slice(first, first + BATCH)
        requests = [Request(data.read(pair), text) for pair, text in zip(chosen[part], captions[part], strict=True)]
        vectors += [(answer.picture, answer.text) for answer in predictor(requests)]
    for crowd, rows in zip((network.heads.pictures, network.heads.captions), zip(*vectors, strict=True), strict=True):
        crowd.gather(torch.from_numpy(np.array(rows, np.float32)).to(crowd.others.device))


def check(config: RetrievalConfig, source: str) -> dict[str, Any]:
    """Reads a data set, a picture or a sound whole and says what is in it; raises DataError at the first fault."""
    if Path(source).suffix.lower() in SOUNDS:
        wave = read_sound(Path(source), name=Path(source).name)
        loudest = float(np.abs(wave).max())
        return {
            "shape": list(wave.shape),
            "text": f"{len(wave) / RATE:.2f} s of sound, the loudest sample {loudest:.2f}",
        }
    if Path(source).is_file() and Path(source).suffix.lower() not in (".csv", ".tsv", ".txt", ".tar"):
        picture = read_picture(Path(source), num_channels=3, most_pixels=config.data.most_pixels)
        text = f"{picture.shape[1]} x {picture.shape[0]} pixels, values {int(picture.min())} to {int(picture.max())}"
        return {"shape": list(picture.shape), "text": text}
    dataset = Dataset.open(source, seed=config.data.split_seed).for_training()
    dataset.refuse_saved_anew(config.data.most_pixels)
    found = dataset.fingerprint
    total = sum(found["captions"].values())
    text = f"{found['format']}: {_counts(found)}; {total} captions of {found['words'] / total:.1f} words; sha256 {found['sha256'][:16]}"
    return {**found, "text": text}


def synthesize(config: RetrievalConfig, path: Path) -> dict[str, Any]:
    """Writes synthetic captioned pictures into a new folder, in Flickr8k's layout."""
    found = write_dataset(config.data.synthetic, path)
    return {"path": str(path), **found, "text": f"{path}: {_counts(found)}, {found['captions']} captions"}


def _counts(found: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{', '.join(f'{count} {side}' for side, count in found[kind].items())} {kind}"
        for kind in ("pictures", "sounds")
        if any(found.get(kind, {}).values())
    )


def samples(config: RetrievalConfig, source: str) -> RetrievalData:
    """All pairs of another data set, whatever its split.

    Raises:
        DataError: the first fault of the data set.
        LeakError: it is the one that the model was trained on.
    """
    if any(Path(own).resolve() == Path(source).resolve() for own in config.data.sources):
        raise LeakError(
            f"{source} is the data set that the model was trained on; without -i its test pictures judge it, with -i another set"
        )
    return RetrievalData(config, Dataset.open(source, seed=config.data.split_seed))


def calibration(
    config: RetrievalConfig, constants: Mapping[str, Any], session: Session, data: RetrievalData, count: int
) -> tuple[list[Arrays], dict[str, int]]:
    """Validation pictures, captions, pairs and sounds, one a row: a row is the call of one part."""
    predictor = RetrievalPredictor(config, constants, session)
    pairs = data.samples("validation")[:count]
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} validation pictures; int8 is calibrated on two at least")
    rows: list[Arrays] = [{"picture": prepared(data.read(pair), predictor.preprocessing)[None]} for pair in pairs]
    for pair in pairs:
        tokens = predictor.tokenizer(pair.captions[:1])
        rows.append({"tokens": tokens.ids, "token_mask": tokens.mask})
    if predictor.places_shape:
        for arrays, pair in zip(rows[len(pairs) :], pairs, strict=True):
            (answer,) = predictor([Request(data.read(pair))])
            words = session(arrays)["words"]
            rows.append({"places": answer.places[None], "words": words})  # type: ignore[index]
    counts = dict.fromkeys(("picture", "text", *(["match"] if predictor.places_shape else [])), len(pairs))
    if predictor.hears:
        sounds = data.sounds("validation")[:count]
        rows += [{"sound": parts_of_sound(data.hear(pair), config.model.audio.num_samples)[:1]} for pair in sounds]
        counts["sound"] = len(sounds)
    return rows, counts


def example() -> Request:
    """A small synthetic picture and its caption."""
    (scene,) = scenes(SyntheticConfig(num_pictures=8))[:1]
    random = np.random.default_rng(0)
    return Request(draw(scene, 96, random), captions_of(scene, 1, random)[0])


def _distillation(config: RetrievalConfig) -> torch.nn.Module:
    from verticals.multimodal.retrieval.matching import SimilarityDistillation  # training only

    return SimilarityDistillation()


def remember(config: RetrievalConfig, source: str, store: str | None) -> dict[str, Any]:
    """Indexes a data set's pictures, or a folder's; see `verticals.multimodal.filling`."""
    from verticals.multimodal.filling import fill  # the index is the service's

    return fill(APPLICATION, source, store)


LIMITS = {
    "float32": Limits(
        tensor=1e-3, answers={"found": 2e-2, "cosine": 1e-3, "match": 1e-3}, figure="mean recall", drop=5e-3
    ),
    "bfloat16": Limits(
        tensor=0.1, answers={"found": 0.2, "cosine": 5e-2, "match": 5e-2}, figure="mean recall", drop=1e-2
    ),
    "int8": Limits(tensor=0.6, answers={"found": 0.5, "cosine": 0.3, "match": 0.3}, figure="mean recall", drop=2e-2),
    "int8-bfloat16": Limits(
        tensor=0.6, answers={"found": 0.5, "cosine": 0.3, "match": 0.3}, figure="mean recall", drop=2e-2
    ),
}
"""Which picture is first may turn where two are nearly alike: the score of all is what binds."""

APPLICATION = Application(
    name="multimodal.retrieval",
    title="image and text retrieval",
    recipes=RECIPES,
    data=RetrievalData,
    task=task,
    constants=constants,
    model=model,
    forms={"pair": pair_form},
    whole=("heads", "vision", "text"),
    distillation=_distillation,
    limits=LIMITS,
    calibration=calibration,
    predictor=RetrievalPredictor,
    has_threshold=False,
    evaluate=evaluate,
    samples=samples,
    predict=predict,
    cost=cost,
    archive=None,
    check=check,
    synthesize=synthesize,
    remember=remember,
    begins_filled=True,
    example=example,
    card=Path(__file__).parent / "README.md",
)
