"""`verticals evaluate`: figures with intervals of a trained model, on its own held days or on another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.evaluation.report import write_report
from core.run import Run
from core.training.log import working
from pipelines.model import open_model


def evaluate(
    application: str,
    *,
    version: str = "production",
    run: str | None = None,
    input: str | None = None,
    split: str = "test",
    report: str | None = None,
) -> dict[str, Any]:
    """
    Args:
        input: a labelled file; every day of it counts. Without it, the days that the model's own data held back.
        split: `validation` or `test` of the model's own data.
        report: where to write the HTML report.

    Raises:
        DataError: the data cannot be used, or labels are missing.
        ArtifactError: no such model, or it is damaged.
    """
    model = open_model(application, version=version, run=run)
    with working("scoring, figures with intervals"):
        if input:
            data, split = model.app.samples(model.config, input), "all"
        else:
            data = model.app.data(model.config)
        evaluation = model.app.evaluate(model.predictor, data, split)
    if report:
        code = (
            Run(model.path).read_json("manifest.json")["code"]
            if run is None
            else Run(model.path).read_json("code.json")
        )
        sections = evaluation.sections(config=model.config.to_yaml(), data=data.fingerprint, code=code, steps=[])
        write_report(Path(report), sections, title=f"{model.app.title}: {model.version}, {input or split}")
    return {
        "version": model.version,
        "split": split,
        **evaluation.record(),
        "text": f"version  {model.version}\n{evaluation.text}",
    }
