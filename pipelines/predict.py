"""`verticals predict`: the answers to a file, in bounded memory, written whole or not at all; or what they would cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from core.contract import Application, Archive
from core.errors import ConfigError, DataError
from core.memory import memory_limit, peak_bytes
from pipelines.model import open_model
from verticals import load


def predict(
    application: str,
    *,
    input: str | None = None,
    output: str | None = None,
    version: str = "production",
    run: str | None = None,
    settings: Sequence[str] = (),
    dry_run: bool = False,
    from_dicomweb: str | None = None,
    study: str | None = None,
    series: str | None = None,
    store: bool = False,
) -> dict[str, Any]:
    """Answers `input`, or what is fetched from an archive, into `output`.

    Args:
        input: a file or folder, as the application reads it.
        output: a file or folder, as the application writes it; may be left out with `store` and `dry_run`.
        settings: overrides of the model's configuration: how to read the input, as `data.columns.amount=AMT`, how to answer.
        dry_run: only promises memory and time; nothing is answered or written.
        from_dicomweb: URL of an archive to fetch the input from.
        study: what to fetch: its UID.
        series: one series of the study, where it has several.
        store: sends the answer back to the archive.

    Raises:
        DataError: a fault in the input (nothing is written), or an output of another kind.
        ConfigError: options that do not go together.
        CapacityError: the input needs more memory than there is.
        Unavailable: the archive does not answer.
        ArtifactError: no such model, or it is damaged.
    """
    app = load(application)
    fetch = _Fetch(from_dicomweb, study, series, store)
    _check_options(app, fetch, input=input, output=output, dry_run=dry_run)
    if output and not Path(output).resolve().parent.is_dir():
        raise DataError(f"the folder of {output} does not exist; make it first")
    if input and output and Path(output).resolve() == Path(input).resolve():
        raise DataError(f"{output} is the input too; give another name")
    started = time.perf_counter()
    archive = app.archive(fetch.url) if app.archive and fetch.url else None
    with _source(archive, fetch, input) as source, tempfile.TemporaryDirectory(prefix="answer-") as spare:
        model = open_model(application, version=version, run=run, as_released=True, settings=settings)
        if dry_run:
            assert app.cost is not None
            return _promise(app.cost(model.predictor, model.config, source), model.version)
        target = Path(output) if output else Path(spare) / "answer"
        answered = app.predict(model.predictor, model.config, source, target)
        if archive and store:
            answered = {**answered, "stored": archive.store(target)}
    seconds = time.perf_counter() - started
    peak = round(peak_bytes() / 1e9, 2)
    text = answered["text"] if output else answered["text"].removeprefix(f"{target}: ")
    sent = f"; {answered['stored']} object(s) stored in the archive" if archive and store else ""
    return {
        **answered,
        "output": output,
        "version": model.version,
        "seconds": round(seconds, 2),
        "peak_gb": peak,
        "text": f"{text} by version {model.version}, {seconds:.1f} s, peak memory {peak} GB{sent}",
    }


class _Fetch(NamedTuple):
    """What is fetched from an archive and stored there."""

    url: str | None
    study: str | None
    series: str | None
    store: bool


def _check_options(app: Application, fetch: _Fetch, *, input: str | None, output: str | None, dry_run: bool) -> None:
    if (input is None) == (fetch.url is None):
        raise ConfigError("give either --input FILE or --from-dicomweb URL --study UID")
    if fetch.url is not None and app.archive is None:
        raise ConfigError(f"{app.name} fetches nothing from archives; give --input FILE")
    if (fetch.url is None) != (fetch.study is None):
        raise ConfigError("--from-dicomweb and --study go together: the archive's URL and the study's UID")
    if (fetch.series or fetch.store) and fetch.url is None:
        raise ConfigError("--series and --store go with --from-dicomweb")
    if dry_run and app.cost is None:
        raise ConfigError(
            f"{app.name} answers files of any size in bounded memory: --dry-run has nothing to promise; leave it out"
        )
    if dry_run and fetch.store:
        raise ConfigError("--dry-run answers nothing that --store could send; leave one of them out")
    if not output and not dry_run and not fetch.store:
        raise ConfigError("give --output, where the answer is written to")


@contextmanager
def _source(archive: Archive | None, fetch: _Fetch, input: str | None) -> Iterator[str]:
    """The input's path; what was fetched is gone when the block ends."""
    if archive is None:
        assert input is not None
        yield input
        return
    with tempfile.TemporaryDirectory(prefix="fetched-") as folder:
        assert fetch.study is not None
        archive.fetch(fetch.study, fetch.series, Path(folder))
        yield folder


def _promise(cost: Any, version: str) -> dict[str, Any]:
    """What a dry run says; exit code 1 where the memory would not be enough."""
    limit = memory_limit()
    fits = cost.bytes <= limit
    verdict = "fits" if fits else "does NOT fit"
    return {
        "bytes": cost.bytes,
        "seconds": cost.seconds,
        "limit_bytes": limit,
        "fits": fits,
        "version": version,
        "text": f"at most {cost.bytes / 1e9:.2f} GB of memory and {cost.seconds:.0f} s by version {version}; it {verdict} into {limit / 1e9:.2f} GB",
        "exit_code": 0 if fits else 1,
    }
