"""The models that `verticals compress` makes of one run, step by step, and the table of what each cost and won."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from core.compression.distillation import Distillation
from core.compression.pruning import num_macs
from core.compression.pruning import prune as prune_channels
from core.contract import Arrays, Data, Session
from core.device import pick_device, seed_everything
from core.distributed.strategy import Strategy
from core.errors import ArtifactError, ConfigError, ScoreError, VerticalsError
from core.inference import artifact as artifacts
from core.inference.model import config_of, network_of, session_of
from core.inference.parts import WHOLE
from core.inference.program import example
from core.inference.session import Precision
from core.run import Run
from core.training.log import Log, working
from core.training.loop import fit
from pipelines.bench import bench
from pipelines.export import write_artifact
from pipelines.model import Place, size_of
from pipelines.parts import Method, Part
from pipelines.train import finish

CALIBRATION_SAMPLES = 300
"""Samples that ranges are fitted on."""

STEPS = 3
"""Of the gradual schedule: the share that is pruned rises so many times, with a training after each."""

MULTIPLE = 16
"""Channels that a processor's int8 kernels work on at a time: with 44 of its 64 left a layer is slower than with all."""

Importance = Literal["l1", "group"]


class Stage(NamedTuple):
    """A model of the chain."""

    name: str
    place: Place
    score: float
    """On the validation days."""


class Chain:
    """The models made so far; the first is the run's own. Each is a directory of its own in one folder."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        *,
        limit: float,
        form: str | None,
        format: artifacts.Format,
        precision: Precision,
        device: str,
    ) -> None:
        """
        Args:
            limit: how much of the score may be lost.
            format: of the artifacts.
            precision: float32 or bfloat16, what is not int8.

        Raises:
            ArtifactError: the folder exists.
            ConfigError: no such form.
        """
        app = place.app
        if form is not None and form not in app.forms:
            raise ConfigError(f"{app.name} has no form {form!r}; there are: {', '.join(app.forms)}")
        if folder.exists():
            raise ArtifactError(f"{folder} exists; give another --output, or remove it first")
        self.app, self.folder, self.limit = app, folder, limit
        self.form = form or next(iter(app.forms))
        self.device = pick_device(device)
        self.config = config_of(app, place.path)
        with working("reading data"):
            self.data: Data = app.data(self.config)
        self.figure = next(iter(app.limits.values())).figure
        self.format, self.precision = format, precision
        self.stages: list[Stage] = []
        self.refused: Mapping[str, str] = {}
        """Layers that pruning left whole, and why."""
        self.add("run", place)

    @contextmanager
    def tidy(self) -> Iterator[None]:
        """Makes the folder. Where a step fails before any model was made, it goes; later, the table so far is written.

        Raises:
            ArtifactError: the folder exists.
            VerticalsError: the step's own, and where what was made lies.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir()
        except FileExistsError:
            raise ArtifactError(f"{self.folder} exists: another command made it meanwhile") from None
        try:
            yield
        except BaseException as error:
            if len(self.stages) == 1:
                shutil.rmtree(self.folder, ignore_errors=True)
            elif isinstance(error, VerticalsError) and not (self.folder / "table.txt").exists():
                text = self.table()["text"]
                raise type(error)(
                    f"{error}\nThe chain ends there. What was made is in {self.folder}:\n{text}"
                ) from error
            raise

    def add(self, name: str, place: Place) -> None:
        """The model as a stage of the chain.

        Raises:
            ScoreError: it has lost too much; the table so far is written.
        """
        with working(f"score of {name} on the validation days"):
            score = self.score(session_of(self.app, place.path, form=self.form), place)
        self.stages.append(Stage(name, place, score))
        lost = self.stages[0].score - score
        if not lost <= self.limit:
            raise ScoreError(
                f"step {name} breaks the limit: {self.figure} of the validation days falls from "
                f"{self.stages[0].score:.4f} to {score:.4f}, by {lost:.4f}; --max-score-drop is {self.limit:g}. Prune less, "
                f"train longer (--set fit.epochs=...), give a --teacher, or allow more. What was made is in {self.folder}:\n"
                f"{self.table(broken=name)['text']}"
            )

    def score(self, session: Session, place: Place) -> float:
        """The application's figure on the validation days, with the constants of a model."""
        constants = Run(place.path).read_json("constants.json")
        predictor = self.app.predictor(self.config, constants, session, version=place.name)
        value = self.app.evaluate(predictor, self.data, "validation").record()["figures"][self.figure]["value"]
        if value is None:
            raise ConfigError(f"{self.figure} does not exist on the validation days: they hold one class only")
        return float(value)

    @property
    def quantized(self) -> Precision:
        """What an int8 network of the chain computes in."""
        return "int8" if self.precision == "float32" else "int8-bfloat16"

    @property
    def last(self) -> Stage:
        """The newest model that is a network in torch."""
        networks = [stage for stage in self.stages if not artifacts.is_artifact(stage.place.path)]
        return networks[-1]

    def recover(self, ratio: float, importance: Importance, teacher: Place | None, settings: Sequence[str]) -> None:
        """Prunes step by step and trains after each, with a teacher where there is one: a run of its own, `small`."""
        app, source = self.app, self.last.place
        if teacher is not None and teacher.app.name != app.name:
            raise ConfigError(
                f"the teacher {teacher.name} is a model of {teacher.app.name}, not of {app.name}: a teacher does the same task"
            )
        config: Any = self.config.override(settings)
        seed_everything(config.fit.seed)
        task, teacher_task = self._task(source), self._task(teacher) if teacher else None
        run = Run.create(self.folder, "runs", config, "small")
        notes: dict[str, Any] = {"source": source.name, "ratio": ratio, "teacher": teacher.name if teacher else None}
        with Log(run.path / "metrics.jsonl") as log:

            def train(network: torch.nn.Module, step: int) -> None:
                task.model = network
                learner = Distillation(task, teacher_task, app.distillation(config)) if teacher_task else task
                fit(learner, self.data, config.fit, strategy=Strategy(self.device), log=log)

            if ratio:
                network = task.model
                keep = [name for name in app.whole if name in dict(network.named_modules())]
                pruned = prune_channels(
                    network,
                    ratio,
                    self._example(task),
                    importance=importance,
                    multiple=MULTIPLE,
                    steps=STEPS,
                    keep=keep,
                    recover=train,
                )
                task.model = pruned.model
                notes |= {"channels": pruned.channels, "refused": pruned.refused}
                self.refused = pruned.refused
            else:
                train(task.model, 1)
        run.write_json("data.json", self.data.fingerprint)
        run.write_json("code.json", {**source.code, "application": app.name, "recipe": "small"})
        run.write_json("compressed.json", notes)
        with working("calibration and figures of the smaller model"):
            finish(app, run, config, self.data, task)
        self.add("small", Place(app, run.path.name, run.path, source.code))

    def _task(self, place: Place) -> Any:
        """A Task around a trained network."""
        task: Any = self.app.task(config_of(self.app, place.path), self.data)
        task.model = network_of(self.app, place.path)
        return task

    def _example(self, task: Any) -> tuple[Any, ...]:
        """What a task hands to its network for its first batch."""
        caught: list[tuple[Any, ...]] = []
        handle = task.model.register_forward_pre_hook(lambda module, given: caught.append(given))
        with torch.no_grad():
            task.eval()(next(iter(self.data.train(rank=0, world_size=1, epoch=0))))
        handle.remove()
        return caught[0]

    def export(self) -> None:
        """The newest network in the runtime, in float: what the runtime alone wins."""
        stage = self.last
        self._write(f"{stage.name}-{self.format}", stage.place, None)

    def quantize(self, method: Method, *, num_samples: int = CALIBRATION_SAMPLES) -> None:
        """int8 of the newest network, calibrated on so many samples where that is the method; layers that cost too much stay in
        float."""
        from core.compression import sensitivity

        stage = self.last
        float_kinds: Sequence[str] = getattr(self.app.forms[self.form], "float_layers", ())
        parts = self._parts(stage)
        notes: dict[str, Any] = {"method": method, "bits": 8}
        samples: list[Arrays] = []
        kept: list[str] = []
        if method == "static":
            with working("calibration samples"):
                samples, notes["calibration"] = self.app.calibration(
                    self.config,
                    Run(stage.place.path).read_json("constants.json"),
                    session_of(self.app, stage.place.path, form=self.form),
                    self.data,
                    num_samples,
                )

        def make(folder: Path, keep: Sequence[str]) -> Path:
            for part in parts:
                part.quantize(folder, method, samples, keep=keep, float_kinds=float_kinds)
            return folder

        def change(folder: Path, format: artifacts.Format) -> Mapping[str, Any]:
            for part in parts:
                for name in part.files:
                    (folder / name).unlink()
            make(folder, kept)
            return {**notes, "float_layers": [*(float_kinds if method == "dynamic" else ()), *kept]}

        name = f"{stage.name}-{self.format}-int8"
        limit = self.stages[0].score - self.limit
        with working("int8, and its score on the validation days"):
            trial = self.folder / "trial"
            trial.mkdir(parents=True)
            try:
                made = make(trial, ())
                if method == "static" and self._score_of(made, stage) < limit:
                    costs = {name: cost for part in parts for name, cost in part.costs(samples).items()}
                    try:
                        held = sensitivity.hold(
                            lambda keep: make(trial, keep),
                            lambda made: self._score_of(made, stage),
                            limit,
                            sorted(costs, key=lambda name: -costs[name]),
                        )
                    except ScoreError as error:
                        raise ScoreError(
                            f"step {name} breaks the limit: --max-score-drop is {self.limit:g} and the run has "
                            f"{self.stages[0].score:.4f} on the validation days; {error}"
                        ) from None
                    kept += held.keep
            finally:
                for part in trial.iterdir():
                    part.unlink()
                trial.rmdir()
        self._write(name, stage.place, change)

    def _parts(self, stage: Stage) -> list[Part]:
        """Of a network that was exported in float: one, or those that it has."""
        folder = self.folder / f"{stage.name}-{self.format}"
        record = artifacts.read(folder)
        return [
            Part(
                name,
                folder,
                artifacts.network_files(self.format, name),
                {spec.name for spec in record.part(name).inputs},
            )
            for name in record.parts or (WHOLE,)
        ]

    def _score_of(self, folder: Path, stage: Stage) -> float:
        """Of a network's files that are no artifact yet."""
        record = artifacts.read(folder.parent / f"{stage.name}-{self.format}")
        return self.score(
            artifacts.open_network(folder, record.model_copy(update={"precision": self.quantized})), stage.place
        )

    def _write(
        self, name: str, place: Place, change: Callable[[Path, artifacts.Format], Mapping[str, Any]] | None
    ) -> None:
        with working(f"{name}: export and parity"):
            write_artifact(
                place,
                self.folder / name,
                self.data,
                "test",
                form=self.form,
                format=self.format,
                precision=self.quantized if change else self.precision,
                change=change,
            )
        self.add(name, Place(self.app, name, self.folder / name, place.code))

    def table(self, broken: str | None = None) -> dict[str, Any]:
        """All stages, measured in turns: `table.txt`, `table.json` and `frontier.svg` in the folder.

        Args:
            broken: the stage that lost too much.
        """
        labels = [stage.name for stage in self.stages]
        measured = bench([stage.place for stage in self.stages], labels=labels, batches=(1,), form=self.form)
        times = {row["model"]: row for row in measured["rows"]}
        rows = []
        for stage in self.stages:
            size, first = size_of(stage.place.path), size_of(self.stages[0].place.path)
            figure, time = measured["scores"][stage.name], times[stage.name]
            rows.append(
                {
                    "model": stage.name,
                    "validation": stage.score,
                    **{key: figure.get(key) for key in ("value", "low", "high", "n")},
                    "bytes": size,
                    "times_smaller": first / size,
                    "p50_ms": time["p50_ms"],
                    "p99_ms": time["p99_ms"],
                    "times_faster": time["times_faster"],
                    "peak_added_bytes": measured["models"][stage.name]["peak_added_bytes"],
                    "macs": self._macs(stage.place),
                    "broke_the_limit": stage.name == broken,
                }
            )
        return self._written(rows, measured["machine"])

    def _macs(self, place: Place) -> int:
        """Multiplications with addition of one sample; an artifact has its source's."""
        if artifacts.is_artifact(place.path):
            source = artifacts.read(place.path).source
            place = next(stage.place for stage in self.stages if stage.place.name == source)
        network = self.app.forms[self.form](network_of(self.app, place.path)).eval()
        inputs = network.inputs
        free = {axis: 1 for spec in inputs for axis in spec.shape[:1] if isinstance(axis, str)}  # type: ignore[union-attr]
        return num_macs(network, example(inputs, free))  # type: ignore[arg-type]

    def _written(self, rows: list[dict[str, Any]], machine: Mapping[str, Any]) -> dict[str, Any]:
        from core.evaluation.plots import frontier  # matplotlib

        titles = ("model", f"{self.figure} (95 %)", "MB", "x smaller", "p50 ms", "p99 ms", "x faster", "MiB", "M MACs")
        cells = [
            (
                row["model"] + (" (broke the limit)" if row["broke_the_limit"] else ""),
                f"{row['value']:.4f}" + (f" ({row['low']:.4f} to {row['high']:.4f})" if row["low"] is not None else ""),
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['times_smaller']:.2f}",
                f"{row['p50_ms']:.3f}",
                f"{row['p99_ms']:.3f}",
                f"{row['times_faster']:.2f}",
                f"{row['peak_added_bytes'] / 2**20:.0f}",
                f"{row['macs'] / 1e6:.3g}",
            )
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        text = "\n".join(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in (titles, *cells)
        )
        record = {"rows": rows, "figure": self.figure, "form": self.form, "limit": self.limit, "machine": dict(machine)}
        (self.folder / "table.txt").write_text(text + "\n", encoding="utf-8")
        (self.folder / "table.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (self.folder / "frontier.svg").write_text(standalone(frontier(rows, figure=self.figure).svg), encoding="utf-8")
        whole = f"\nkept their width: {', '.join(self.refused)} (compressed.json says why)" if self.refused else ""
        return {"folder": str(self.folder), **record, "text": f"{text}{whole}\n{self.folder}"}


def standalone(svg: str) -> str:
    """A drawing of a report as a file of its own, dark on white."""
    style = (
        "<style>svg{background:#fff;font-family:sans-serif;--ink:#1a1a1a;--muted:#666;--grid:#e5e5e5;"
        "--series-1:#2563eb;--series-2:#dc2626;--series-3:#059669;--series-4:#d97706}</style>"
    )
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{style}{rest}'
