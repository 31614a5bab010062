"""`verticals data`: makes, checks or loads an application's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError
from verticals import load as application_of


def data(
    application: str,
    *,
    recipe: str = "default",
    settings: Sequence[str] = (),
    synthetic: str | None = None,
    check: str | None = None,
    load: str | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """One of three: write synthetic data, check a file, or load it into what the service keeps.

    Raises:
        DataError: what is wrong with the file, by row and column.
        ConfigError: unknown recipe or setting, or an application whose service keeps nothing.
    """
    app = application_of(application)
    if recipe not in app.recipes:
        raise ConfigError(f"{application} has no recipe {recipe!r}; there are: {', '.join(app.recipes)}")
    config = app.recipes[recipe]().override(settings)
    if synthetic:
        if not Path(synthetic).resolve().parent.is_dir():
            raise DataError(f"the folder of {synthetic} does not exist; make it first")
        return app.synthesize(config, Path(synthetic))
    if check:
        return app.check(config, check)
    assert load is not None
    if app.remember is None:
        raise ConfigError(f"the service of {application} keeps no data; --load is for applications whose service does")
    return app.remember(config, load, store)
