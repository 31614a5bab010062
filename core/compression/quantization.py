"""Int8 of model files: dynamic by ONNX Runtime, static with calibration by NNCF for ONNX and OpenVINO.

Dynamic measures the ranges of activations anew for every call and wants no samples: right for recurrent and small
networks. Static fits them once on calibration samples: right for convolutions. Training with int8 in mind is in
`core.compression.aware`; which layers to leave in float is in `core.compression.sensitivity`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nncf
import onnx
import openvino as ov
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from core.compression.graphs import (
    DYNAMIC,
    REST,
    Samples,
    apart,
    check,
    check_known,
    floats,
    inputs_of,
    quantizable,
    quietly,
    read_onnx,
    read_openvino,
    run,
    whole,
)
from core.errors import ConfigError, DataError

Preset = Literal["mixed", "performance", "transformer"]

nncf.set_log_level(logging.ERROR)


def dynamic(source: Path, target: Path, *, keep: Sequence[str] = ()) -> Path:
    """Writes the dynamic int8 form of an ONNX file: weights by channel in int8, activations as they come.

    Args:
        source: `.onnx`.
        target: `.onnx`, another file; written whole or not at all.
        keep: names of layers that stay in float; see `layers`.

    Raises:
        ArtifactError: the source is missing or damaged.
        ConfigError: another kind of file, a layer in `keep` that is none, or nothing that can be quantized.
    """
    check(source, target, (".onnx",))
    model = read_onnx(source)
    names = [node.name for node in model.graph.node if node.op_type in DYNAMIC]
    check_known(keep, names, source)
    add_pre_process_metadata(model)  # else it advises a step that torch's exporter has done
    with whole(target) as part, quietly():
        quantize_dynamic(
            onnx.shape_inference.infer_shapes(model),
            part,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )
        kinds = {node.op_type for node in onnx.load(part).graph.node}
        if not any(
            "Integer" in kind or kind.startswith(("DynamicQuantize", "QAttention", "Dequantize")) for kind in kinds
        ):
            raise ConfigError(
                f"nothing in {source} has a dynamic int8 form but what is kept; such are {', '.join(DYNAMIC)} with weights"
            )
    return target


def static(source: Path, target: Path, samples: Samples, *, keep: Sequence[str] = (), preset: Preset = "mixed") -> Path:
    """Writes the static int8 form of an ONNX or OpenVINO file, its ranges fitted on samples.

    Args:
        source: `.onnx`, or `.xml` with its `.bin` beside it.
        target: of the same kind, another file; written whole or not at all.
        samples: what the model is called with; every class among them, see `calibration_rows`.
        keep: names of layers that stay in float; see `layers`; `*` for all that is no layer.
        preset: `mixed` fits activations on both sides of zero by themselves, `performance` symmetrically; `transformer`
            is `mixed` with rules for attention.

    Raises:
        DataError: no samples, or arrays that are not the model's inputs.
        ArtifactError: the source is missing or damaged.
        ConfigError: another kind of file, a preset or layer that is none, or nothing that can be quantized.
    """
    check(source, target, (".onnx", ".xml"))
    if preset not in ("mixed", "performance", "transformer"):
        raise ConfigError(f"preset is {preset!r}; allowed are mixed, performance and transformer")
    if not len(samples):
        raise DataError("no calibration samples; give some hundred calls' inputs, every class among them")
    model = apart(read_onnx(source)) if source.suffix == ".onnx" else read_openvino(source)
    wanted = inputs_of(model)
    for place, sample in enumerate(samples):
        if sample.keys() != wanted:
            raise DataError(f"calibration sample {place} has {sorted(sample)}; {source.name} takes {sorted(wanted)}")
    names = quantizable(model)
    check_known(keep, [*names, REST], source)
    if not set(names) - set(keep):
        raise ConfigError(f"nothing in {source} was quantized: no layer is left that is not kept in float")
    try:
        quantized = _quantized(model, samples, keep, preset)
    except Exception as error:  # whatever NNCF says of a graph it cannot follow
        raise ConfigError(
            f"NNCF cannot quantize {source} ({type(error).__name__}: {error}); take the dynamic form, another format, or "
            "keep the layer it speaks of"
        ) from error
    with whole(target) as part:
        if isinstance(quantized, ov.Model):
            ov.save_model(quantized, part, compress_to_fp16=False)
        else:
            onnx.save(quantized, part)
        try:
            run(part, samples[:1])
        except Exception as error:  # runtimes have kinds of their own
            raise ConfigError(
                f"the int8 form of {source} does not run ({error}); keep the layer it speaks of"
            ) from error
    return target


def weights(source: Path, target: Path, *, keep: Sequence[str] = ()) -> Path:
    """Writes an OpenVINO file with its weights in int8, by channel; activations stay what the session computes in.

    A quarter of the size at the speed of float32 or bfloat16: what is left to lose is the rounding of the weights. Of a
    file that `static` wrote, it takes the layers that were left in float.

    Args:
        source: `.xml` with its `.bin` beside it.
        target: `.xml`, another file; written whole or not at all.
        keep: names of layers whose weights stay in float.

    Raises:
        ArtifactError: the source is missing or damaged.
        ConfigError: another kind of file, or a layer in `keep` that is none.
    """
    check(source, target, (".xml",))
    model = read_openvino(source)
    check_known(keep, quantizable(model), source)
    with whole(target) as part, quietly():
        scope = nncf.IgnoredScope(names=list(keep), validate=False)
        made = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=scope)
        ov.save_model(made, part, compress_to_fp16=False)
    return target


def quantize_file(
    input_model: Path | str,
    output_dir: Path | str,
    method: Literal["dynamic", "static", "weights"] = "dynamic",
    bitwidth: int = 8,
    samples: Samples | None = None,
) -> Path:
    """Writes the int8 form of a model file, under its name, into a new directory.

    Args:
        input_model: `.onnx` for `dynamic` and `static`, `.xml` for `static` and `weights`.
        output_dir: made whole or not at all; must not be there yet.
        bitwidth: 8.
        samples: for `static`.

    Returns:
        The file.

    Raises:
        ConfigError: a kind of file, method or number of bits that is not quantized here, or a directory that is there.
        DataError: `static` without samples.
        ArtifactError: the file is missing or damaged.
    """
    source, folder = Path(input_model), Path(output_dir)
    if bitwidth != 8:
        raise ConfigError(f"bitwidth is {bitwidth}; allowed is 8: the runtimes here compute in no other")
    if method not in ("dynamic", "static", "weights"):
        raise ConfigError(f"method is {method!r}; allowed are dynamic, static and weights")
    if method == "dynamic" and source.suffix == ".xml":
        raise ConfigError(
            "OpenVINO has no dynamic int8 of a file; give method='static' with samples, method='weights', or the .onnx file"
        )
    check(source, None, (".xml",) if method == "weights" else (".onnx", ".xml"))
    if folder.exists():
        raise ConfigError(f"{folder} is there already; give a directory that is not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        if method == "static":
            static(source, part / source.name, samples or ())
        elif method == "weights":
            weights(source, part / source.name)
        else:
            dynamic(source, part / source.name)
        os.replace(part, folder)
    return folder / source.name


def _quantized(model: Any, samples: Samples, keep: Sequence[str], preset: Preset) -> Any:
    """The int8 form in memory; `model` stays as it is."""
    transformer = preset == "transformer"
    with quietly():
        return nncf.quantize(
            model.clone() if isinstance(model, ov.Model) else model,
            nncf.Dataset([dict(sample) for sample in samples]),
            preset=nncf.QuantizationPreset("mixed" if transformer else preset),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=floats(model, keep), validate=False),
        )
