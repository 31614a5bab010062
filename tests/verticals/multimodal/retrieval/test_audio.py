"""Sounds: read, shown as spectrograms as a known library shows them, and learned into the space of pictures and texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from transformers.audio_utils import mel_filter_bank, spectrogram

from core.errors import ConfigError, DataError
from core.inference.model import build
from pipelines.export import export
from pipelines.train import train
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.audio import (
    FLOOR,
    HOP,
    MOST_SECONDS,
    RATE,
    WINDOW,
    AudioEncoder,
    LogMel,
    parts_of_sound,
    read_sound,
)
from verticals.multimodal.retrieval.config import debug
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor
from verticals.multimodal.retrieval.synthetic import write_dataset
from verticals.multimodal.retrieval.synthetic_sounds import PITCHES, play, sound_captions, tunes

SOUND = ["model.audio.name=test_efficientnet", "model.audio.num_bands=32", "data.synthetic.num_sounds=120"]


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray[Any, Any]:
    return np.asarray(np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate), np.float32)


def wav(rate: int, samples: np.ndarray[Any, Any]) -> bytes:
    held = io.BytesIO()
    wavfile.write(held, rate, samples)
    return held.getvalue()


def test_a_spectrogram_is_that_of_the_library() -> None:
    wave = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    bands = mel_filter_bank(WINDOW // 2 + 1, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    hann = np.hanning(WINDOW + 1)[:-1]
    expected = spectrogram(
        wave, hann, WINDOW, HOP, center=False, power=2.0, mel_filters=bands, mel_floor=FLOOR, log_mel="log"
    )
    found = LogMel(40)(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float32"])
def test_every_rate_and_depth_is_the_same_sound(rate: int, kind: str) -> None:
    wave = 0.5 * tone(rate)
    scale = {"int16": 32767, "int32": 2**31 - 1, "uint8": 127, "float32": 1}[kind]
    samples = (wave.astype(np.float64) * scale + (128 if kind == "uint8" else 0)).astype(kind)
    found = read_sound(wav(rate, np.stack([samples, samples], 1)))
    expected = 0.5 * tone(RATE)
    assert found.dtype == np.float32
    assert abs(len(found) - len(expected)) <= 1
    middle = slice(500, 7500)  # resampling rings at the ends
    assert np.abs(found[middle] - expected[middle]).max() < 0.02


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"RIFF no sound at all", "cannot be read"),
        (wav(RATE, tone(RATE))[:60], "give a WAV file|lasts"),
        (wav(RATE, np.zeros(0, np.int16)), "lasts 0.0 s|cannot be read"),
        (wav(100, tone(1_000)), "allowed are 1,000 to"),
        (wav(1_000, np.zeros(1_000 * (MOST_SECONDS + 1), np.int16)), "allowed are up to 600"),
        (wav(RATE, np.full(RATE, np.nan, np.float32)), "no numbers"),
        (wav(RATE, np.full(RATE, 3e18, np.float32)), r"samples up to 3e\+18; allowed are 1,000 times full scale"),
    ],
)
def test_what_is_no_sound_is_told(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_sound(data)


def test_a_sound_is_heard_part_by_part() -> None:
    for count, parts in ((10, 1), (100, 1), (140, 1), (160, 2), (1000, 10)):
        made = parts_of_sound(np.ones(count, np.float32), 100)
        assert made.shape == (parts, 100)
        assert made.sum() == min(count, parts * 100)


def test_tunes_differ_and_their_pitch_is_what_is_said() -> None:
    made = tunes(288, 0)
    assert len(set(made)) == 288
    random = np.random.default_rng(0)
    for tune in made[:60]:
        if tune.timbre == "pure" and tune.movement == "steady":
            power = np.abs(np.fft.rfft(play(tune, random))) ** 2
            hertz = np.fft.rfftfreq(2 * RATE, 1 / RATE)[power.argmax()]
            low, high = PITCHES[tune.pitch]
            assert low * 0.97 <= hertz <= high * 1.03
        assert len({*sound_captions(tune, 5, random)}) == 5
    with pytest.raises(ConfigError, match="there are 288"):
        tunes(289, 0)


def test_any_network_of_timm_hears() -> None:
    made = AudioEncoder("resnet18").eval()
    assert made(torch.randn(2, RATE)).shape == (2, 512)
    with pytest.raises(ConfigError, match="timm has no such network"):
        AudioEncoder("resnet")


def test_sounds_without_an_encoder_and_an_encoder_without_sounds(tmp_path: Path) -> None:
    config = debug().override(SOUND)
    write_dataset(config.data.synthetic, tmp_path / "made")
    source = f"data.sources=['{tmp_path / 'made'}']"
    with pytest.raises(DataError, match="the model no encoder of them"):
        RetrievalData(debug().override([source]))
    with pytest.raises(DataError, match="has no sounds to train on"):
        RetrievalData(debug().override(SOUND[:1]))
    said = APPLICATION.check(config, str(tmp_path / "made"))
    assert "108 train pictures; 80 train, 20 validation, 20 test sounds" in said["text"].replace(
        "26 validation, 26 test, ", ""
    ).replace("108 train, 26 validation, 26 test pictures", "108 train pictures")
    sound = next((tmp_path / "made/files").glob("*.wav"))
    assert APPLICATION.check(config, str(sound))["text"].startswith("2.00 s of sound")


def test_a_batch_has_sounds_whose_captions_are_theirs() -> None:
    data = RetrievalData(debug().override([*SOUND, "sampler.captions=2"]))
    batch = next(iter(data.train(rank=0, world_size=1, epoch=0)))
    assert batch.sounds.shape == (16, data.config.model.audio.num_samples)
    assert batch.numbers.shape == (32,)
    assert batch.owner.tolist() == np.repeat(batch.numbers.numpy(), 2).tolist()
    halves = [next(iter(data.train(rank=rank, world_size=2, epoch=0))) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.sounds for half in halves]), batch.sounds)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder / "home"))
        settings = [*SOUND, "fit.epochs=16"]
        said = train("multimodal.retrieval", recipe="debug", settings=settings, runs=str(folder / "runs"), alias="none")
    return Path(said["run"]), said


def test_sounds_and_their_words_are_found_in_the_space_of_pictures(run: tuple[Path, dict[str, Any]]) -> None:
    figures = run[1]["figures"]
    assert figures["R@1 text to sound"]["n"] == 20
    assert figures["R@5 text to sound"]["value"] > 0.6  # chance is .25
    assert figures["R@5 sound to text"]["value"] > 0.6
    assert figures["R@5 text to picture"]["value"] > 0.5  # the others are learned beside them
    predictor: RetrievalPredictor = build(APPLICATION, run[0], "test")[1]
    random = np.random.default_rng(5)
    one = tunes(1, 9)[0]
    wave = play(one, random)
    heard, both = predictor([Request(sound=wave), Request(sound=wave, text=sound_captions(one, 1, random)[0])])
    assert heard.sound is not None
    assert (heard.score, heard.picture, heard.text) == (None, None, None)
    np.testing.assert_allclose(heard.query, heard.sound, atol=1e-6)
    assert both.score == pytest.approx(float(both.sound @ both.text), abs=1e-5)  # type: ignore[operator]
    (long,) = predictor([Request(sound=np.tile(wave, 40))])
    assert float(long.sound @ heard.sound) > 0.99  # type: ignore[operator]


def test_the_exported_sound_part_hears_the_same(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for format in ("onnx", "openvino"):
        said = export(str(run[0]), format=format, output=str(tmp_path / format))
        assert said["parity"]["passed"]


def test_a_model_that_has_not_learned_sounds_says_so(trained: tuple[Path, dict[str, Any]]) -> None:
    predictor: RetrievalPredictor = build(APPLICATION, Path(trained[1]["run"]), "test")[1]
    with pytest.raises(DataError, match="has not learned any"):
        predictor([Request(sound=np.zeros(RATE, np.float32))])


def test_sounds_are_learned_beside_frozen_encoders() -> None:
    from tests.verticals.multimodal.retrieval.test_learning import frozen, judged, learned

    made, data = learned(frozen(*SOUND, "fit.epochs=6", "model.match.grid=2"))
    figures = judged(made, data).figures
    assert figures["R@5 text to sound"].value > 0.3
