"""`verticals release`: which version answers, and from which score on, changed without a redeploy."""

from __future__ import annotations

from typing import Any

from core import registry
from core.errors import ConfigError
from verticals import APPLICATIONS, load


def release(
    application: str, *, version: str | None = None, alias: str = "production", threshold: str | None = None
) -> dict[str, Any]:
    """Points `alias` at a version, or sets a version's threshold, or lists what there is.

    Args:
        version: a version or alias; with it, `alias` is moved there.
        threshold: from 0 to 1, or `none` for the model's own; holds for the version that is named, or for the one behind `alias`.

    Raises:
        ConfigError: unknown application, one that decides at no score, or a threshold out of range.
        ArtifactError: no such version, or it is damaged.
    """
    if application not in APPLICATIONS:
        raise ConfigError(f"no application {application!r}; there are: {', '.join(APPLICATIONS)}")
    score = None if threshold in (None, "none") else _probability(str(threshold))
    if score is not None and not load(application).has_threshold:
        raise ConfigError(f"{application} decides at no score; --threshold is for applications that do")
    if version is not None:
        registry.set_alias(application, alias, version)
    if threshold is not None:
        registry.set_threshold(application, version or alias, score)
    rows = [
        {
            "version": found.version,
            "created": found.created.isoformat(timespec="seconds"),
            "aliases": list(found.aliases),
            "threshold": found.threshold,
            "figures": found.report.get("figures", {}),
        }
        for found in registry.versions(application)
    ]
    lines = []
    for row in rows:
        names = ", ".join(row["aliases"]) or "-"
        override = "" if row["threshold"] is None else f"  threshold {row['threshold']:g}"
        lines.append(f"{row['version']}  {row['created']}  {names}{override}")
    return {
        "versions": rows,
        "text": "\n".join(lines) or f"no version yet; make one with: verticals train {application}",
    }


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"threshold {text} is no probability; allowed is 0 to 1, or none for the model's own")
    return value
