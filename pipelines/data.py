"""`verticals data`: makes, checks or loads an application's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError
from verticals import load


def data(
    application: str,
    *,
    recipe: str = "default",
    settings: Sequence[str] = (),
    synthetic: str | None = None,
    check: str | None = None,
    load_history: str | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """One of three: write synthetic data, check a file, or load a file's past into the service's store.

    Raises:
        DataError: what is wrong with the file, by row and column.
        ConfigError: unknown recipe or setting, or an application that remembers nothing.
    """
    app = load(application)
    if recipe not in app.recipes:
        raise ConfigError(f"{application} has no recipe {recipe!r}; there are: {', '.join(app.recipes)}")
    config = app.recipes[recipe]().override(settings)
    if synthetic:
        if not Path(synthetic).resolve().parent.is_dir():
            raise DataError(f"the folder of {synthetic} does not exist; make it first")
        return app.synthesize(config, Path(synthetic))
    if check:
        return app.check(config, check)
    assert load_history is not None
    if app.remember is None:
        raise ConfigError(f"{application} keeps no history; --load-history is for applications that do")
    return app.remember(config, load_history, store)
