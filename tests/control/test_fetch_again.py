"""A damaged model that cannot be fetched again is one line in the log, whatever the reason: the platform goes on."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from serve.control.app import ControlPlane
from serve.core.errors import SourceUnreachable


@pytest.mark.parametrize(
    "error", [SourceUnreachable("nobody answers"), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "")]
)
async def test_a_fetch_that_fails_ends_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def fetch(*_arguments: Any) -> None:
        raise error

    await ControlPlane._fetch_again(SimpleNamespace(_fetch=fetch), "0" * 64, "http://127.0.0.1/m")  # type: ignore[arg-type]
    assert "deploy it again" in caplog.text
