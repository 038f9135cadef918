"""The home folder: private, and readable by the command whatever it finds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.core.home import Home, PlatformInfo

INFO = PlatformInfo("http://127.0.0.1:8000", "http://127.0.0.1:8000", 4711, "0.1.0", 1_700_000_000_000_000_000)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVE_HOME", "SERVE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Home]:
    before = os.umask(request.param)
    try:
        yield Home(tmp_path / "home")
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_home_and_its_folders_are_private_under_any_umask(home: Home) -> None:
    home.create()
    assert [mode(path) for path in (home.path, home.journal, home.store, home.logs, home.run)] == [0o700] * 5


def test_a_home_others_could_read_is_made_private(home: Home) -> None:
    home.path.mkdir()
    home.path.chmod(0o755)
    home.create()
    home.create()
    assert mode(home.path) == 0o700


def test_the_token_is_private_long_and_made_once(home: Home) -> None:
    home.create()
    token = home.create_token()
    assert mode(home.token_file) == 0o600
    assert len(token) >= 43
    assert home.create_token() == home.token() == Home(home.path).token() == token


def test_an_empty_token_is_none_at_all(home: Home) -> None:
    home.create()
    home.token_file.write_text("\n")
    token = home.create_token()
    assert len(token) >= 43
    assert home.token() == token


def test_a_token_in_the_environment_wins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.create()
    made = home.create_token()
    monkeypatch.setenv("SERVE_TOKEN", "given")
    assert home.token() == "given"
    monkeypatch.setenv("SERVE_TOKEN", "")
    assert home.token() == made


def test_without_a_token_there_is_none(home: Home) -> None:
    assert home.token() is None


def test_what_the_platform_writes_the_command_reads(home: Home) -> None:
    home.create()
    home.write_info(INFO)
    assert home.read_info() == INFO
    assert mode(home.info_file) == 0o600
    assert sorted(path.name for path in home.path.iterdir() if path.is_file()) == ["platform.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"url": "x"}', '{"surprise": 1}', "\xff"])
def test_a_platform_file_that_says_nothing_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.info_file.write_text(text, encoding="latin-1")
    assert home.read_info() is None


def test_without_a_platform_file_there_is_no_platform(tmp_path: Path) -> None:
    assert Home(tmp_path / "missing").read_info() is None


def test_the_home_is_where_the_flag_the_environment_or_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().path == tmp_path / ".servezero"
    monkeypatch.setenv("SERVE_HOME", "~/elsewhere")
    assert Home().path == tmp_path / "elsewhere"
    assert Home(tmp_path / "flag").path == tmp_path / "flag"


def test_a_relative_home_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home("here")
    monkeypatch.chdir("/")
    assert home.path == tmp_path / "here"


def test_without_a_home_folder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SERVE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(OSError, match="HOME is not set: name a folder with --home"):
        Home()


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(OSError, match="not valid UTF-8"):
        Home(os.fsdecode(b"/tmp/\xff"))


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    home = Home(tmp_path / "home")
    with pytest.raises(OSError, match="File exists") as caught:
        home.create()
    assert home.unusable(caught.value).startswith(f"{home.path} cannot be written or read (there is a file where a fol")
    (tmp_path / "home").unlink()
    (tmp_path / "home" / "store").parent.mkdir()
    (tmp_path / "home" / "store").touch()
    with pytest.raises(OSError, match="File exists") as caught:
        home.create()
    assert str(home.store) in home.unusable(caught.value)


def test_a_token_others_could_read_is_made_private(home: Home) -> None:
    home.create()
    home.token_file.write_text("abc\n")
    home.token_file.chmod(0o666)
    assert home.create_token() == "abc"
    assert mode(home.token_file) == 0o600


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(home: Home) -> None:
    home.create()
    home.info_file.mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        home.write_info(INFO)
    assert str(home.info_file) in home.unusable(caught.value)
    assert [path.name for path in home.path.iterdir() if path.is_file()] == []
