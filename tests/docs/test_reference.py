"""Pages that describe the code are complete and true: commands, flags, settings, keys, codes, metrics, the schema."""

from __future__ import annotations

import inspect
import re

import pytest

from serve.cli import local
from serve.cli.deploy import deploy
from serve.core.settings import PlatformSettings
from serve.core.spec import DeploymentSpec
from tests.docs import tables

REMEDY = "run `python -m tests.docs.tables` and read what changed"


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_tables_of_a_page_say_what_the_code_says(page: str) -> None:
    text = (tables.DOCS / page).read_text()
    assert tables.generated_part(text) == tables.PAGES[page](), REMEDY


def test_the_published_schema_is_that_of_the_spec() -> None:
    assert tables.SCHEMA.read_text() == tables.schema_text(), REMEDY


def test_every_key_of_the_spec_is_a_flag_of_deploy() -> None:
    renamed = {"labels": "label", "engine_settings": "engine_setting"}
    flags = set(inspect.signature(deploy).parameters)
    assert {renamed.get(key, key) for key in DeploymentSpec.model_fields} <= flags


def test_the_command_and_the_platform_have_the_same_default_address() -> None:
    fields = PlatformSettings.model_fields
    assert (fields["host"].default, fields["port"].default) == (local.DEFAULT_HOST, local.DEFAULT_PORT)


def test_the_prose_of_errors_explains_every_code_of_the_table() -> None:
    text = (tables.DOCS / "errors.md").read_text()
    table = set(re.findall(r"^\| `(\w+)`", tables.errors(), re.MULTILINE))
    prose = set(re.findall(r"`(\w+)`", text.replace(tables.generated_part(text), "")))
    assert table - prose == set()
    assert len(table) > 25
