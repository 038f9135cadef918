"""Settings of the platform: from the environment, checked, documented."""

import pytest
from pydantic import ValidationError

from serve.core.settings import PlatformSettings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in PlatformSettings.model_fields:
        monkeypatch.delenv(f"SERVE_{field.upper()}", raising=False)


def test_settings_come_from_the_environment_and_flags_override_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_PORT", "9000")
    monkeypatch.setenv("SERVE_MEMORY_BUDGET", "512MiB")
    assert PlatformSettings().port == 9000
    assert PlatformSettings().memory_budget == 512 << 20
    assert PlatformSettings(port=9001).port == 9001


def test_the_other_variables_of_the_command_do_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVE_HOME", "SERVE_URL", "SERVE_TOKEN"):
        monkeypatch.setenv(name, "x")
    assert PlatformSettings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("PORT", "http"), ("DRIVER", "docker"), ("LOG_LEVEL", "LOUD"), ("CHECKPOINT_INTERVAL", "0")],
)
def test_a_wrong_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SERVE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        PlatformSettings()


def test_every_setting_is_described() -> None:
    assert [name for name, field in PlatformSettings.model_fields.items() if not field.description] == []
