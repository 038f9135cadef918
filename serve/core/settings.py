"""Settings of the platform process: environment variables `SERVE_*`, overridden by flags of `serve up`."""

from __future__ import annotations

from pydantic import ByteSize, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PlatformSettings(BaseSettings):
    """Each field can be given as `SERVE_<FIELD>`; sizes as `512MiB`. Documented in `docs/settings.md` (by test)."""

    model_config = SettingsConfigDict(env_prefix="SERVE_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on. Other than loopback is refused without keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the data plane, and of all else without admin_port.")
    admin_port: int | None = Field(None, ge=0, le=65535, description="Port for /api/v1 and /metrics alone.")
    memory_budget: ByteSize | None = Field(
        None, ge=1, description="Memory all replicas together may hold. Unset: 80 % of the machine's (or cgroup's)."
    )
    store_budget: ByteSize = Field(ByteSize(20 << 30), ge=0, description="Disk the store of models may use.")
    body_limit: ByteSize = Field(ByteSize(64 << 20), ge=1, description="Largest request body.")
    connections: int = Field(
        10_000, ge=1, description="Most client connections at once; fewer where the system grants fewer descriptors."
    )
    head_timeout: float = Field(
        20.0, gt=0, description="Seconds for a request's head, from its first byte to its last."
    )
    stall_timeout: float = Field(
        20.0, gt=0, description="Seconds without a byte of a body coming, or of an answer being taken, until it is cut."
    )
    keep_alive: float = Field(75.0, gt=0, description="Seconds that a connection stays open without a request.")
    unread_bytes: ByteSize = Field(
        ByteSize(256 << 20), ge=0, description="Most bytes of answers that all clients together may leave unread."
    )
    drain_timeout: float = Field(30.0, ge=0, description="Seconds that requests may still take after SIGTERM.")
    checkpoint_interval: float = Field(5.0, gt=0, description="Seconds between billing checkpoints of a live replica.")
    journal_sync: str = Field(
        "interval",
        pattern="^(none|interval|always)$",
        description="When billing records are synced to the disk, against power loss: at the end, about once a second "
        "without delaying anybody, or before each answer.",
    )
    keep_revisions: int = Field(10, ge=1, description="Revisions kept per deployment for rollback.")
    driver: str = Field("local", pattern="^(local|exec)$", description="How replicas start: forked, or executed anew.")
    test_engines: bool = Field(
        False,
        description="Allow engines that only play a model, for tests: their models can do as they like.",
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Level of the platform's log.")
