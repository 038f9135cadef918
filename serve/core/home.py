"""The platform's home folder and how the command finds a running platform in it.

Standard library only: every `serve` command imports this.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PlatformInfo:
    """Content of `platform.json`: a platform that runs, or that ended without cleaning up (then `pid` is dead)."""

    url: str
    admin_url: str
    pid: int
    version: str
    started_wall_ns: int


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a person wrote, `~` replaced where such a user exists."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


class Home:
    """Paths below the home (`SERVE_HOME`, default `~/.servezero`). Creating it makes it private (0700)."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Raise OSError where the path means nothing: no home folder is known, or it is not UTF-8."""
        try:
            chosen = path or os.environ.get("SERVE_HOME") or Path.home() / ".servezero"
            self.path = user_path(chosen).absolute()
            str(self.path).encode()
        except RuntimeError:
            raise OSError(errno.ENOENT, "HOME is not set: name a folder with --home", "~/.servezero") from None
        except UnicodeEncodeError:
            raise OSError(errno.EILSEQ, "the path is not valid UTF-8: name another with --home", str(path)) from None

    def create(self) -> None:
        """Make the folders. Raises OSError where the home cannot be written."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.stat().st_mode & 0o777 != 0o700:
            self.path.chmod(0o700)
        for folder in (self.journal, self.store, self.logs, self.run):
            folder.mkdir(mode=0o700, exist_ok=True)

    def unusable(self, error: OSError) -> str:
        """Return the sentence for an error that a file or folder of the home gave."""
        what = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            what = "there is a file where a folder must be"
        elif isinstance(error, IsADirectoryError):
            what = "there is a folder where a file must be"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            what += "; free space on its disk"
        path = error.filename2 or error.filename or self.path
        return f"{path} cannot be written or read ({what}): mend that, or choose another home with --home or SERVE_HOME"

    @property
    def lock(self) -> Path:
        """flock'ed by the running platform."""
        return self.path / "lock"

    @property
    def info_file(self) -> Path:
        return self.path / "platform.json"

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def registry(self) -> Path:
        return self.path / "registry.db"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.db"

    @property
    def prices(self) -> Path:
        """The operator's price book; the built-in one applies where the file is missing."""
        return self.path / "prices.yaml"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def logs(self) -> Path:
        """`platform.log`, and `replicas/<deployment>/<replica id>.log`."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """Samples, sockets: things that need not survive a restart."""
        return self.path / "run"

    def read_info(self) -> PlatformInfo | None:
        """Return what `platform.json` says, or None where no platform left one."""
        try:
            info = PlatformInfo(**json.loads(self.info_file.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return info if _is_sound(info) else None

    def write_info(self, info: PlatformInfo) -> None:
        _write_private(self.info_file, json.dumps(asdict(info)))

    def token(self) -> str | None:
        """Return the control API's bearer token: `SERVE_TOKEN`, or the file in the home, or None."""
        given = os.environ.get("SERVE_TOKEN")
        if given:
            return given
        try:
            return self._written_token()
        except OSError:
            return None

    def create_token(self) -> str:
        """Return the token in the home, making one (256 random bits, file mode 0600) where there is none.

        An empty file, such as a power loss can leave, is none: it would let everybody in.
        """
        try:
            token = self._written_token()
        except FileNotFoundError:
            token = None
        if not token:
            token = secrets.token_urlsafe(32)
            _write_private(self.token_file, token)
        elif self.token_file.stat().st_mode & 0o077:
            self.token_file.chmod(0o600)
        return token

    def _written_token(self) -> str | None:
        """Return what the token's file holds; None where that is no token: a header must carry it. Raise OSError."""
        token = self.token_file.read_bytes().decode("ascii", "replace").strip()
        return token if token.isascii() and token.isprintable() else None


def _is_sound(info: PlatformInfo) -> bool:
    texts = (info.url, info.admin_url, info.version)
    is_typed = all(type(text) is str for text in texts) and type(info.pid) is type(info.started_wall_ns) is int
    return is_typed and info.pid > 0


def _write_private(path: Path, text: str) -> None:
    """Write a 0600 file so that a reader sees the old or the new text, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
