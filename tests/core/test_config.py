"""Configuration: overrides, records, and errors that name what is allowed."""

import pytest
from pydantic import Field

from core.config import Config
from core.errors import ConfigError


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    """Per step."""
    names: dict[str, str] = {}
    """Free mapping."""


class Outer(Config):
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    label: str = "a"


def test_override_reaches_nested_values_and_leaves_the_original_alone() -> None:
    config = Outer()
    changed = config.override(["inner.rate=3e-4", "sizes=[4, 5, 6]", "inner.names.amount=BETRAG"])
    assert changed.inner.rate == 3e-4
    assert changed.sizes == (4, 5, 6)
    assert changed.inner.names == {"amount": "BETRAG"}
    assert config == Outer()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("inner.rat=1", "allowed here: rate, names"),
        ("inner.rate=-1", "greater than 0"),
        ("inner.rate=fast", "valid number"),
        ("label.x=1", "it is a value"),
        ("label", "has no value"),
        ("sizes=[1, 2", "is not YAML"),
    ],
)
def test_override_refuses_in_words(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Outer().override([setting])


def test_yaml_round_trip() -> None:
    config = Outer().override(["inner.rate=0.25"])
    assert Outer.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("mark", [",", ";", "|", "\t", "-"])
def test_a_lone_mark_is_text(mark: str) -> None:
    assert Outer().override([f"label={mark}"]).label == mark


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "inner: {speed: 1}"])
def test_yaml_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Outer.from_yaml(text)


def test_field_docstrings_become_descriptions() -> None:
    assert Inner.model_fields["rate"].description == "Per step."
