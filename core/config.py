"""Configuration as frozen pydantic models: values live in Python recipes, YAML is the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import ConfigError


class Config(BaseModel):
    """Frozen, strict about names: an unknown key is refused. Every field is followed by a line that gives its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    def override(self, settings: Sequence[str]) -> Self:
        """A copy with `optim.lr=3e-4` and the like applied; values are read as YAML.

        Raises:
            ConfigError: no such key (the allowed ones are listed), or a value that its field refuses.
        """
        record = self.model_dump(mode="json")
        for setting in settings:
            path, separator, text = setting.partition("=")
            if not separator:
                raise ConfigError(f"--set {setting} has no value; write --set {setting}=VALUE")
            *parents, last = path.strip().split(".")
            node: Any = record
            for depth, key in enumerate([*parents, last]):
                if not isinstance(node, dict) or (key not in node and _is_closed(self, parents[:depth])):
                    allowed = ", ".join(node) if isinstance(node, dict) else "none: it is a value"
                    raise ConfigError(f"--set {path}: no setting {key!r}; allowed here: {allowed}")
                if depth < len(parents):
                    node = node[key]
            node[last] = _value(path, text)
        return self.from_record(record)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Raises ConfigError that names each field in words."""
        try:
            return cls.model_validate(dict(record))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc']) or cls.__name__}: {fault['msg']} (given: {fault['input']!r})"
                for fault in error.errors()[:5]
            )
            raise ConfigError(f"the configuration is not valid: {faults}") from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Raises ConfigError for text that is no YAML mapping or does not fit the fields."""
        try:
            record = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the configuration is not YAML: {error}") from None
        if not isinstance(record, dict):
            raise ConfigError(f"the configuration is a {type(record).__name__}; it has to be a mapping of settings")
        return cls.from_record(record)


def _value(path: str, text: str) -> Any:
    """The YAML reading of a setting; YAML 1.1 takes `3e-4` for text, a person does not, nor a lone mark for syntax."""
    if len(text) == 1 and not text.isalnum() and text != "~":
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {path}: {text!r} is not YAML; put text with special characters in quotes") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_closed(config: Config, parents: Sequence[str]) -> bool:
    """Whether the place is a Config (whose keys are fixed) rather than a free mapping."""
    node: Any = config
    for key in parents:
        node = getattr(node, key) if isinstance(node, Config) else node[key]
    return isinstance(node, Config)
