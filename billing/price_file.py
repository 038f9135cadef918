"""Reads a price book from YAML: validated, with sentences that name the remedy."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from billing.prices import PriceBook, Prices
from serve.core.yaml_file import read_yaml

DEFAULT_FILE = Path(__file__).with_name("default_prices.yaml")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(2200, 1, 1, tzinfo=UTC)
"""Times are nanoseconds in 64 bits."""


class PriceBookError(ValueError):
    """The price book cannot be used. The sentence names file, entry and remedy."""


def _utc(value: Any) -> Any:
    """Accept `2026-01-31` and ISO date-times; what names no zone is UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time.min)
    if isinstance(value, datetime):
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if _EPOCH <= value < _END:
            return value
        raise ValueError("write a date between 1970 and 2200")
    raise ValueError("write a date such as 2026-01-31 or 2026-01-31T12:00:00Z")


Nano = Annotated[int, Field(ge=0, le=10**15, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    effective: Annotated[datetime, BeforeValidator(_utc)] = Field(alias="from")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    core_second: Nano = 24_000
    gib_second: Nano = 2_500
    request: Nano = 0

    def prices(self) -> Prices:
        elapsed = self.effective - _EPOCH
        effective_ns = ((elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds) * 1000
        return Prices(effective_ns, self.currency, self.core_second, self.gib_second, self.request)


class _Book(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prices: list[_Entry] = Field(min_length=1)


def load_price_book(path: Path | None = None) -> PriceBook:
    """Return the price book in `path`, or the built-in one where the file does not exist. Raise PriceBookError."""
    chosen = path if path is not None and path.exists() else DEFAULT_FILE
    try:
        book = _Book.model_validate(read_yaml(chosen))
        return PriceBook(entry.prices() for entry in book.prices)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the file"
        raise PriceBookError(f"{chosen}: {where}: {first['msg']}; correct it or remove the file") from error
    except (OSError, ValueError) as error:
        raise PriceBookError(f"{chosen}: {' '.join(str(error).split())}; correct it or remove the file") from error
