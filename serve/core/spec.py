"""`DeploymentSpec`: the one meaning of `serve deploy` flags, `serve.yaml` and `/api/v1`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from serve.core.durations import parse_duration
from serve.core.ids import check_name


def _seconds(value: Any) -> Any:
    """Accept `60`, `"60s"`, `"5m"`, `"1h30m"`."""
    if isinstance(value, str):
        seconds = parse_duration(value)
        if seconds is None:
            raise ValueError(f"'{value}' is not a duration: write 60s, 5m or 1h30m")
        return seconds
    return value


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def _plain_json(value: Any) -> Any:
    """Refuse what would not come back from the registry as it went: then the platform could not start again."""
    try:
        is_plain = _ANY.validate_json(_ANY.dump_json([value])) == [value]
    except ValueError:  # what is written may nest deeper than what is read
        is_plain = False
    if not is_plain:
        raise ValueError("settings are plain JSON: finite numbers, text, and little nesting")
    return value


# The lower bound stands at each field: of two on one number pydantic keeps the first, whichever is tighter.
Seconds = Annotated[float, Field(le=30 * 86400), BeforeValidator(_seconds)]
Name = Annotated[str, AfterValidator(check_name)]
LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, Field(max_length=63)]


ENGINES = frozenset({"onnx"})
TEST_ENGINES = frozenset({"scripted"})
"""They do as the model's file says, which may be to kill themselves."""


class DeploymentSpec(BaseModel):
    """How a deployment behaves. Immutable; a change makes a new revision.

    Field names are the flags of `serve deploy` and the keys of `serve.yaml`; durations are seconds or `"60s"`, sizes
    are bytes or `"256MiB"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="DeploymentSpec")

    name: Name = Field(description="What callers put into the URL.")
    min: int = Field(0, ge=0, le=1000, description="Replicas kept running without traffic. 0 = scale to zero.")
    max: int | None = Field(None, ge=1, le=1000, description="Most replicas. Unset: bounded by memory alone.")
    idle: Seconds = Field(60.0, ge=0, description="Time without requests after which the last replica exits.")
    concurrency: int | None = Field(
        None, ge=1, le=10_000, description="Most requests inside one replica. Unset: 1, or 2 × max_batch if batchable."
    )
    target: float = Field(0.7, gt=0, le=1, description="Share of `concurrency` that the autoscaler aims at.")
    timeout: Seconds = Field(300.0, gt=0, description="Longest time from request head to last byte, waiting included.")
    execution_timeout: Seconds = Field(
        120.0, gt=0, description="Longest time inside a replica; one that takes longer is killed."
    )
    start_timeout: Seconds = Field(300.0, gt=0, description="Longest time a replica may take to become ready.")
    queue: int = Field(1000, ge=0, le=1_000_000, description="Most requests that may wait for a replica.")
    queue_bytes: ByteSize = Field(
        ByteSize(256 << 20), ge=0, le=1 << 50, description="Most body bytes held, waiting or inside."
    )
    max_batch: int = Field(32, ge=1, le=65_536, description="Most rows joined into one run of a batchable model.")
    threads: int | None = Field(None, ge=1, le=256, description="Inference threads. Unset: measured at publish.")
    stable_window: Seconds = Field(60.0, ge=1, description="Averaging window of normal scaling.")
    panic_window: Seconds = Field(6.0, ge=0.1, description="Averaging window that detects bursts.")
    engine: str = Field("onnx", pattern=r"^[a-z]+$", description="Which engine runs the model.")
    engine_settings: Annotated[dict[str, Any], AfterValidator(_plain_json)] = Field(
        default_factory=dict, description="Settings of that engine."
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Team, cost centre, …: `serve bill --by label:KEY`."
    )

    @model_validator(mode="after")
    def _bounds(self) -> DeploymentSpec:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        if self.panic_window > self.stable_window:
            raise ValueError("panic_window is longer than stable_window")
        return self

    def concurrency_for(self, batchable: bool) -> int:
        """Return the effective limit of requests inside one replica."""
        if self.concurrency is not None:
            return self.concurrency
        return 2 * self.max_batch if batchable else 1


_AS_TEXT = ("idle", "timeout", "execution_timeout", "start_timeout", "stable_window", "panic_window", "queue_bytes")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `serve.yaml`: the spec, a `model`, and durations and sizes as text too."""
    schema = DeploymentSpec.model_json_schema()
    properties = schema["properties"]
    properties["model"] = {"type": "string", "description": "Path or URL of the model, as for `serve deploy`."}
    for key in _AS_TEXT:
        known = properties[key]
        for word in ("ge", "le"):  # pydantic's own where text may stand too: schemas know `minimum`, which is there
            known.pop(word, None)
        properties[key] = {
            "description": known.pop("description"),
            "default": known.pop("default"),
            "anyOf": [known, {"type": "string", "pattern": r"^[0-9.]+ ?[A-Za-z0-9. ]*$"}],
        }
    properties["labels"]["additionalProperties"] = False
    schema["required"] = [key for key in schema.get("required", []) if key != "name"]
    return schema
