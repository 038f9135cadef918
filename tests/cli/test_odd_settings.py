"""Settings that no sane person writes: a sentence and exit code 2, whatever YAML and paths can hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from serve.cli.failure import CommandError
from serve.cli.specfile import check, merge, read_document, read_request

_BOMB = "\n".join(
    [
        "a: &a [x, x, x, x, x, x, x, x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghi")),
    ]
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * 5000, "nests deeper than 50 levels"),
        ("a: " * 60 + "b", "mapping values"),
        ("- " * 60 + "b", "nests deeper"),
        ("a: " + "1" * 5000, "digits"),
        ("idle: 2026-13-45", "month"),
        ("!!float x: 1", "float"),
        ("min: &a [*a]", "write them out"),
        (_BOMB, "write them out"),
        ("x" * (1 << 18) + "x", "larger than 262144 bytes"),
        ("a: b: c", "mapping values"),
        ("name: \x00", "special characters"),
        ("!!python/object/apply:os.system [true]", "constructor"),
    ],
)
def test_yaml_that_cannot_be_settings_is_refused_in_one_line(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(CommandError) as caught:
        read_document(str(path))
    assert caught.value.code == "usage"
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_of_a_text_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("name: &name digits\nlabels: {app: *name}\n")
    assert read_document(str(path)) == {"name": "digits", "labels": {"app": "digits"}}


@pytest.mark.parametrize("value", [{1.5: 1}, {(1, 2): 3}, [[[]]], "\ud800", {"a": "\ud800"}, float("nan"), 10**400])
@pytest.mark.parametrize("key", ["min", "idle", "labels", "engine", "queue_bytes", "engine_settings", "nonsense"])
def test_a_value_of_a_wrong_kind_is_named_in_a_sentence(key: str, value: object) -> None:
    with pytest.raises(CommandError) as caught:
        check({"name": "digits", key: value})
    assert caught.value.code == "invalid_spec"


def test_a_home_of_nobody_is_a_path_that_is_not_there() -> None:
    for read in (lambda: read_document("~no-such-user/serve.yaml"), lambda: read_request("~no-such-user/x", "--input")):
        with pytest.raises(CommandError, match="cannot read"):
            read()


def test_an_engine_setting_that_nests_without_end_is_taken_as_text() -> None:
    deep = "[" * 100_000
    assert merge({}, {}, [], [f"a={deep}"]) == {"engine_settings": {"a": deep}}
