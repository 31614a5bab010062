"""What goes in and out of card fraud: pydantic types with their limits. Light: a client can import them.

Only hashes of card and terminal are kept anywhere; nothing here logs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_BATCH = 10_000
FUTURE_SECONDS = 86_400.0
"""By how much a transaction may lie ahead of this machine's clock."""


def _utc(value: Any) -> Any:
    """Text without a zone is UTC; numbers are refused, since nobody can tell seconds from milliseconds."""
    if isinstance(value, (int, float)):
        raise ValueError("a number is not a time; send ISO 8601 text such as 2018-08-08T12:00:00Z")
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("not a time; send ISO 8601 text such as 2018-08-08T12:00:00Z") from None
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _not_future(value: datetime) -> datetime:
    if (value - datetime.now(UTC)).total_seconds() > FUTURE_SECONDS:
        raise ValueError("lies more than a day in the future; check the clock and the time zone")
    if value.year < 1971:
        raise ValueError("lies before 1971; check the time's unit")
    return value


def _text(value: Any) -> Any:
    """Identifiers may come as whole numbers, as they stand in many files."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _no_bool(value: Any) -> Any:
    """Pydantic would take true for 1."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers; send a number, or text where the field is a category")
    return value


Key = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=128, pattern=r"^\P{C}+$")]


class Transaction(BaseModel):
    """One card transaction, to be scored before anything later of the same card."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={
            "example": {  # the singular, which BentoML's own schema type knows
                "transaction_id": "t-1",
                "time": "2026-05-04T12:30:00Z",
                "customer": "card-17",
                "terminal": "terminal-3",
                "amount": 42.5,
            }
        },
    )

    transaction_id: Key = Field(description="Unique. The same id with the same content gets its first answer again.")
    time: Annotated[AwareDatetime, BeforeValidator(_utc), AfterValidator(_not_future)] = Field(
        description="ISO 8601; without a zone it is UTC."
    )
    customer: Key = Field(description="The card, or any stable name for it; only a hash of it is kept.")
    terminal: Key = Field(description="The terminal or merchant; only a hash of it is kept.")
    amount: Annotated[float, BeforeValidator(_no_bool)] = Field(ge=0, le=1e12, description="Currency units.")
    extra: dict[str, Annotated[float | str, BeforeValidator(_no_bool)]] = Field(
        default_factory=dict, description="The further columns that the model was trained with."
    )

    @property
    def microseconds(self) -> int:
        """Time since 1970 UTC."""
        past = self.time - EPOCH
        return (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds


class Batch(BaseModel):
    """Transactions to be scored in time order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transactions: list[Transaction] = Field(min_length=1, max_length=MAX_BATCH)
    explain: Literal["alerts", "all"] = Field("alerts", description="Which of them get reasons.")


class Reason(BaseModel):
    """One thing that moved the score."""

    cause: str = Field(description="What it is, in words; `past event` for an earlier transaction of the card.")
    effect: float = Field(description="Log-odds that it added (positive) or took away.")
    feature: str | None = Field(None, description="The feature of the cause that did most.")
    value: float | None = Field(None, description="That feature's value, in its own unit.")
    usual: float | None = Field(None, description="Its median on the training days.")
    time: datetime | None = Field(None, description="When the past event was.")
    amount: float | None = Field(None, description="Amount of the past event.")


class Decision(BaseModel):
    """The answer to one transaction."""

    transaction_id: str
    score: float = Field(description="Calibrated probability of fraud.")
    decision: Literal["alert", "pass"]
    threshold: float = Field(description="Score from which on the decision is `alert`.")
    version: str = Field(description="Version of the model that answered.")
    cold_start: bool = Field(description="True where the card had no earlier transaction in the store.")
    reasons: list[Reason]


class Feedback(BaseModel):
    """A confirmed label of an earlier transaction, or its reversal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transaction_id: Key
    fraud: bool = Field(description="True: confirmed fraud. False: genuine, or an earlier label taken back.")
