"""A network made ready for a runtime: a directory with its specs, constants, hashes and parity report.

    artifact.json                              what it is, and the sha256 of every other file
    config.yaml constants.json data.json ...   of the run that it was made of, as they were
    model.safetensors + program.json | model.onnx | model.xml + model.bin | model.engine
    parity.json report.json report.html        how it compares with that run, and its own figures

No pickle is written or read. A directory appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from core.config import Config
from core.contract import Session, TensorSpec
from core.errors import ArtifactError, ConfigError
from core.inference.parts import WHOLE, PartsSession
from core.inference.session import Precision, SessionConfig

LAYOUT = 1
"""Of an artifact's directory; another number is refused."""

Format = Literal["torch", "onnx", "openvino", "tensorrt"]

NETWORK_FILES: Mapping[Format, tuple[str, ...]] = {
    "torch": ("model.safetensors", "program.json"),
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "tensorrt": ("model.engine",),
}
"""What holds the network; the first is what a runtime opens. Of a part of several, its name and a dot come before."""

RUN_FILES = ("config.yaml", "constants.json", "data.json", "code.json")
"""What is taken over from the run as it is."""

REPORT_FILES = ("parity.json", "report.json", "report.html")
"""What is written after the comparison, and so is no part of it."""

PACKAGES: Mapping[Format, str] = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}


class File(Config):
    """One file of an artifact."""

    sha256: str
    bytes: int


class Part(Config):
    """One of several graphs."""

    inputs: tuple[str, ...]
    """Names among the record's."""
    outputs: tuple[str, ...]


class Record(Config):
    """`artifact.json`."""

    layout: int = LAYOUT
    application: str
    source: str
    """Run or version that it was made of."""
    form: str
    """Which of the application's forms of the network."""
    format: Format
    precision: Precision
    runtime: str
    """Version of the runtime that parity was shown with."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parts: dict[str, Part] = {}
    """Of a network that has several; else the one graph has all inputs and outputs."""
    notes: dict[str, Any] = {}
    """How it was compressed: calibration samples by class, layers left in float."""
    files: dict[str, File] = {}
    """Every file but `artifact.json`."""
    sha256: str = ""
    """Of `artifact.json` itself, written without this hash."""

    def part(self, name: str) -> Record:
        """The record of one part alone, with its own inputs and outputs; of `WHOLE` it is the record itself."""
        if name == WHOLE:
            return self
        own = self.parts[name]
        inputs, outputs = (
            tuple(spec for name in names for spec in specs if spec.name == name)
            for names, specs in ((own.inputs, self.inputs), (own.outputs, self.outputs))
        )
        return self.model_copy(update={"inputs": inputs, "outputs": outputs, "parts": {}})

    def part_of(self, arrays: Iterable[str]) -> str:
        """Name of the part that takes arrays of these names."""
        names = set(arrays)
        return next((name for name, part in self.parts.items() if set(part.inputs) == names), WHOLE)


def parts(networks: Mapping[str, Any]) -> dict[str, Part]:
    """What a record says of a network's parts; nothing of one that has none."""
    return {
        name: Part(inputs=[spec.name for spec in network.inputs], outputs=[spec.name for spec in network.outputs])
        for name, network in networks.items()
        if name != WHOLE
    }


def network_files(format: Format, part: str) -> tuple[str, ...]:
    """Names of the files of a part, or of the network as a whole."""
    return tuple(f"{part}.{name}" if part else name for name in NETWORK_FILES[format])


def check_format(format: str) -> Format:
    """
    Raises:
        ConfigError: no such format, or the package of its runtime is not installed.
    """
    if format not in NETWORK_FILES:
        raise ConfigError(f"format {format!r} is unknown; allowed: {', '.join(NETWORK_FILES)}")
    runtime_version(format)  # type: ignore[arg-type]
    return format  # type: ignore[return-value]


def runtime_version(format: Format) -> str:
    """Raises ConfigError where the package is missing."""
    package = PACKAGES[format]
    for name in (package, f"{package}-gpu"):
        try:
            return f"{package} {version(name)}"
        except PackageNotFoundError:
            continue
    raise ConfigError(f"format {format} needs the package {package}, which is not installed: pip install {package}")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        ArtifactError: `target` exists.
    """
    if target.exists():
        raise ArtifactError(f"{target} exists; give another --output, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        staging = Path(folder) / "artifact"
        staging.mkdir()
        yield staging
        try:
            staging.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            raise ArtifactError(f"{target} exists: another command made it meanwhile") from error


def copy_run(path: Path, folder: Path, *, code: Mapping[str, Any]) -> None:
    """The run's or version's files that an artifact keeps.

    Raises:
        ArtifactError: one of them is missing.
    """
    for name in RUN_FILES:
        if name == "code.json":
            (folder / name).write_text(json.dumps(dict(code), indent=1), encoding="utf-8")
        elif not (path / name).is_file():
            raise ArtifactError(f"{path} has no {name}: the training did not finish; run it again or with --resume")
        else:
            shutil.copyfile(path / name, folder / name)


def hashes(folder: Path) -> dict[str, File]:
    """Of every file but `artifact.json`."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != "artifact.json":
            if not path.is_file():
                raise ArtifactError(f"{path} is no file: it was added after the export; remove it")
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[path.name] = File(sha256=digest, bytes=path.stat().st_size)
    return found


def seal(folder: Path, record: Record) -> Record:
    """Writes `artifact.json` with the hashes of all that is there now."""
    sealed = record.model_copy(update={"files": hashes(folder), "sha256": ""})
    digest = hashlib.sha256(sealed.model_dump_json(indent=1).encode()).hexdigest()
    sealed = sealed.model_copy(update={"sha256": digest})
    (folder / "artifact.json").write_text(sealed.model_dump_json(indent=1), encoding="utf-8")
    return sealed


def is_artifact(path: Path) -> bool:
    return (path / "artifact.json").is_file()


def read(path: Path) -> Record:
    """The record of an artifact whose every file is what was written.

    Raises:
        ArtifactError: no artifact, one of another layout, or a file is missing, damaged or foreign (named).
    """
    try:
        text = (path / "artifact.json").read_bytes()
        record = Record.model_validate_json(text)
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} is no artifact (artifact.json is missing); make one with: verticals export"
        ) from None
    except (ValidationError, OSError) as error:
        layout = _layout(path)
        if layout is not None and layout != LAYOUT:
            raise _other(path, layout) from None
        raise ArtifactError(f"{path / 'artifact.json'} is damaged ({type(error).__name__}); export again") from None
    if record.layout != LAYOUT:
        raise _other(path, record.layout)
    if hashlib.sha256(text.replace(record.sha256.encode(), b"")).hexdigest() != record.sha256:
        raise ArtifactError(f"{path / 'artifact.json'} is not what was written (its sha256 differs); export again")
    found = hashes(path)
    for name, file in record.files.items():
        if name not in found:
            raise ArtifactError(f"{path}: {name} is missing; restore it from a copy or export again")
        if found[name].bytes != file.bytes:
            raise ArtifactError(
                f"{path}: {name} has {found[name].bytes} bytes, {file.bytes} were written: it was cut off or changed; "
                "restore it from a copy or export again"
            )
        if found[name] != file:
            raise ArtifactError(f"{path}: {name} is not what was written (its sha256 differs); export again")
    # a registered version keeps a manifest of its own beside the artifact's files
    if foreign := sorted(set(found) - set(record.files) - {"manifest.json", "model.yaml"}):
        raise ArtifactError(f"{path}: {', '.join(foreign)} was added after the export; remove it")
    return record


def proved(path: Path) -> Record:
    """`read`, of an artifact that was shown to answer as its model.

    Raises:
        ArtifactError: as `read`; and where the report of parity is missing or damaged, did not pass, or is about other
            files.
    """
    record = read(path)
    again = f"export it again with: verticals export {record.application}"
    if "parity.json" not in record.files:
        raise ArtifactError(f"{path} has no parity report: nobody has shown that it answers as its model; {again}")
    if missing := sorted({*RUN_FILES, *REPORT_FILES} - set(record.files)):
        raise ArtifactError(f"{path} has no {', '.join(missing)}; {again}")
    try:
        parity = dict(json.loads((path / "parity.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ArtifactError(f"{path}: parity.json is damaged; {again}") from None
    if parity.get("passed") is not True:
        findings = parity.get("findings")
        reasons = "; ".join(map(str, findings)) if isinstance(findings, list) and findings else "no reason given"
        raise ArtifactError(f"{path} did not pass parity ({reasons}); {again}")
    compared = parity["files"] if isinstance(parity.get("files"), dict) else {}
    for name, file in record.files.items():
        if name not in REPORT_FILES and file.sha256 != compared.get(name):
            raise ArtifactError(f"{path}: {name} is not what parity was shown for; {again}")
    return record


def _layout(path: Path) -> Any:
    try:
        return json.loads((path / "artifact.json").read_text(encoding="utf-8"))["layout"]
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _other(path: Path, layout: Any) -> ArtifactError:
    return ArtifactError(
        f"{path} was made by another version (layout {layout}, this code reads {LAYOUT}): export it again from its run"
    )


def open_network(path: Path, record: Record, config: SessionConfig | None = None) -> Session:
    """The artifact's network in its runtime, which is imported here and not before; the parts of one that has some.

    Raises:
        ArtifactError: the network cannot be loaded.
        ConfigError: its runtime is not installed, or has no such device or precision.
    """
    runtime_version(record.format)
    config = config or SessionConfig()
    if record.parts:
        return PartsSession({name: _open(path, record.part(name), name, config) for name in record.parts})
    return _open(path, record, WHOLE, config)


def _open(path: Path, record: Record, part: str, config: SessionConfig) -> Session:
    file = path / network_files(record.format, part)[0]
    specs = {"inputs": record.inputs, "outputs": record.outputs}
    if record.format == "torch":
        from core.device import pick_device
        from core.inference.program import ExportedNetwork
        from core.inference.session import TorchSession

        network = ExportedNetwork(path, files=network_files("torch", part), **specs)
        return TorchSession(network, device=pick_device(config.device), precision=record.precision)
    if record.format == "onnx":
        from core.inference.session_onnx import OnnxSession

        return OnnxSession(file, **specs, precision=record.precision, config=config)
    if record.format == "openvino":
        from core.inference.session_openvino import OpenVinoSession

        return OpenVinoSession(file, **specs, precision=record.precision, config=config)
    from core.inference.session_tensorrt import TensorRtSession

    return TensorRtSession(file, **specs, precision=record.precision, config=config)
