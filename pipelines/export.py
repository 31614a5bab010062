"""`verticals export`: a trained network for a runtime, and the proof that it answers the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.export import ExportedProgram

from core import registry
from core.contract import Application, Arrays, Data
from core.device import machine
from core.errors import ArtifactError, ConfigError, ParityError
from core.evaluation.report import write_report
from core.inference import artifact as artifacts
from core.inference.departure import first_departure
from core.inference.export import graphs_of, write_network
from core.inference.model import config_of, network_of
from core.inference.parity import Compared, Side, compare
from core.inference.parts import parts_of, torch_session
from core.inference.session import Precision
from core.run import Run
from core.training.log import working
from pipelines.model import Place, find, samples, size_of

PRECISIONS = {
    "torch": ("float32",),
    "onnx": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "tensorrt": ("float32", "float16", "bfloat16"),
}
"""What a network can be exported in without being compressed; int8 is made by `verticals compress`."""

Change = Callable[[Path, artifacts.Format], Mapping[str, Any]]
"""(folder, format) -> notes; changes the network's files before parity is asked for, as quantization does."""


def export(
    model: str,
    *,
    format: str = "onnx",
    form: str | None = None,
    precision: str = "float32",
    output: str | None = None,
    input: str | None = None,
    split: str = "test",
    alias: str = "none",
    check: str | None = None,
) -> dict[str, Any]:
    """Writes an artifact, once its whole way from sample to answer agrees with the model's; nothing otherwise.

    Args:
        model: run directory, or `APPLICATION[:VERSION]`.
        format: torch, onnx, openvino or tensorrt.
        form: of the network; the application's first where None.
        precision: what the runtime computes in.
        output: the artifact's directory, which must not exist.
        input: a labelled file whose samples are compared; without it the `split` of the model's own data.
        alias: `candidate` or `production` registers the artifact, `none` does not.
        check: an artifact that exists: it is compared again, and nothing is written.

    Raises:
        ParityError: the artifact departs; says where.
        ArtifactError: no such model, or the network cannot be exported.
        ConfigError: an unknown format, form or precision.
    """
    place = find(model)
    if check:
        return _checked(place, Path(check), input=input, split=split)
    form, precision = _chosen(place.app, format, form, precision)
    target = Path(output or f"artifacts/{place.app.name}/{place.name}-{form}-{format}-{precision}")
    config = config_of(place.app, place.path)
    with working("export, and both models on the same samples"):
        data, split = samples(place, config, input=input, split=split)
        compared = write_artifact(
            place,
            target,
            data,
            split,
            form=form,
            format=artifacts.check_format(format),
            precision=cast(Precision, precision),
        )
    version = None
    if alias != "none":
        version = registry.register(target, place.app.name)
        registry.set_alias(place.app.name, alias, version)
    size, before = size_of(target), size_of(place.path)
    return {
        "artifact": str(target),
        "version": version,
        "bytes": size,
        "parity": compared.report._asdict(),
        "text": f"{compared.report.text}\nsize      {size / 1e6:.2f} MB (the run's weights: {before / 1e6:.2f} MB)\nartifact  {target}"
        + (f"\nversion   {version} = {alias}" if version else ""),
    }


def write_artifact(
    place: Place,
    target: Path,
    data: Data,
    split: str,
    *,
    form: str,
    format: artifacts.Format,
    precision: Precision,
    change: Change | None = None,
) -> Compared:
    """The artifact's directory, if parity holds.

    Raises:
        ParityError: it does not; nothing is left behind.
    """
    app = place.app
    with artifacts.staged(target) as folder:
        artifacts.copy_run(place.path, folder, code={**place.code, "application": app.name})
        network = app.forms[form](network_of(app, place.path))
        graphs = write_network(network, folder, format, precision=precision)
        notes = dict(change(folder, format)) if change else {}
        record = artifacts.Record(
            application=app.name,
            source=place.name,
            form=form,
            format=format,
            precision=precision,
            runtime=artifacts.runtime_version(format),
            inputs=network.inputs,
            outputs=network.outputs,
            parts=artifacts.parts(parts_of(network)),
            notes=notes,
        )
        compared = _compared(place, network, lambda: graphs, target.name, folder, record, data, split)
        if not compared.report.passed or compared.metrics is None:
            raise ParityError(f"{target} was not written:\n{compared.report.text}")
        report = compared.report._replace(files={name: file.sha256 for name, file in artifacts.hashes(folder).items()})
        (folder / "parity.json").write_text(json.dumps(report._asdict(), indent=1), encoding="utf-8")
        figures = {**compared.metrics.record(), "text": compared.metrics.text, "machine": machine()}
        (folder / "report.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
        sections = compared.metrics.sections(
            config=Run(folder).read_text("config.yaml"), data=data.fingerprint, code=place.code, steps=[]
        )
        write_report(folder / "report.html", sections, title=f"{app.title}: {target.name}")
        artifacts.seal(folder, record)
    return Compared(report, compared.metrics)


def _checked(place: Place, path: Path, *, input: str | None, split: str) -> dict[str, Any]:
    """Compares an artifact that exists with the model that it was made of."""
    app, record = place.app, artifacts.read(path)
    if record.application != app.name:
        raise ArtifactError(f"{path} is an artifact of {record.application}, not of {app.name}")
    if record.form not in app.forms:
        raise ArtifactError(
            f"{path} holds the form {record.form!r}; {app.name} has {', '.join(app.forms)}: export it again"
        )
    network = app.forms[record.form](network_of(app, place.path))

    with working("both models on the same samples"):
        data, split = samples(place, config_of(app, place.path), input=input, split=split)
        compared = _compared(
            place, network, lambda: graphs_of(network, record.format), path.name, path, record, data, split
        )
    if not compared.report.passed:
        raise ParityError(compared.report.text)
    return {"artifact": str(path), "parity": compared.report._asdict(), "text": compared.report.text}


def _compared(
    place: Place,
    network: nn.Module,
    graphs: Callable[[], Mapping[str, ExportedProgram]],
    name: str,
    folder: Path,
    record: artifacts.Record,
    data: Data,
    split: str,
) -> Compared:
    """The artifact in a folder beside the network that it was made of; `graphs` are asked for only where it departs."""
    app = place.app

    def located(arrays: Arrays) -> str:
        return first_departure(graphs(), folder, record, arrays, limit=app.limits[record.precision].tensor)

    return compare(
        app,
        _side(app, place.name, place.path, torch_session(network)),
        _side(app, name, folder, artifacts.open_network(folder, record)),
        data,
        split,
        precision=record.precision,
        notes=record.notes,
        locate=located,
    )


def _side(app: Application, name: str, path: Path, session: Any) -> Side:
    return Side(name, config_of(app, path), Run(path).read_json("constants.json"), session)


def _chosen(app: Application, format: str, form: str | None, precision: str) -> tuple[str, str]:
    """The form's name and the precision, where the application, the format and this machine have them."""
    checked = artifacts.check_format(format)
    form = form or next(iter(app.forms))
    if form not in app.forms:
        raise ConfigError(f"{app.name} has no form {form!r}; there are: {', '.join(app.forms)}")
    if precision.startswith("int8"):
        raise ConfigError("int8 is made by `verticals compress`, which calibrates and measures what it costs")
    if precision not in PRECISIONS[checked]:
        raise ConfigError(f"{format} has no precision {precision!r} here; allowed: {', '.join(PRECISIONS[checked])}")
    if precision not in app.limits:
        raise ConfigError(
            f"{app.name} has no parity limits for {precision}; there are limits for {', '.join(app.limits)}"
        )
    return form, precision
