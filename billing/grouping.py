"""`--by`: which row of a report something belongs to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from serve.core.clock import NS_PER_S

_BUCKETS_S = {"hour": 3600, "day": 86_400}
_LABEL = "label:"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grouping:
    kind: str
    """deployment, revision, label, hour or day."""
    label: str = ""

    @classmethod
    def parse(cls, by: str) -> Grouping:
        """Return the grouping that `by` names. Raise ValueError with the choices."""
        if by.startswith(_LABEL) and len(by) > len(_LABEL):
            return cls("label", by.removeprefix(_LABEL))
        if by in ("deployment", "revision", *_BUCKETS_S):
            return cls(by)
        raise ValueError(f"cannot group by '{by}': use deployment, revision, label:KEY, hour or day")

    @property
    def bucket_ns(self) -> int:
        """Length of a row in time; 0 where rows are no stretches of time."""
        return _BUCKETS_S.get(self.kind, 0) * NS_PER_S

    def key(self, deployment: str, revision: int, labels: dict[str, str], wall_ns: int) -> str | None:
        """Return the row's name: None without that label; hours and days as the UTC time they begin."""
        match self.kind:
            case "deployment":
                return deployment
            case "revision":
                return f"{deployment}-r{revision}"
            case "label":
                return labels.get(self.label)
        begin = _EPOCH + timedelta(seconds=wall_ns // self.bucket_ns * _BUCKETS_S[self.kind])
        return f"{begin:%Y-%m-%d}" if self.kind == "day" else f"{begin:%Y-%m-%dT%H:00:00Z}"
