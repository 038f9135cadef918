"""Which platform a command talks to: `--url` or SERVE_URL, else the local platform of the home."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from serve.cli.client import Client
from serve.cli.failure import CommandError, usage
from serve.cli.local import running, start_detached
from serve.core.home import Home, PlatformInfo


@dataclass(frozen=True, slots=True)
class Connection:
    """Clients for the two planes of one platform. They share an address unless `--admin-port` splits them."""

    api: Client
    data: Client


def connect(url: str | None, home: str | None) -> Connection:
    """Return clients for the platform that the command line means. Raises CommandError where there is none."""
    url = url or os.environ.get("SERVE_URL") or None
    folder = Home(home)
    if url is not None:
        return _remote(url, folder)
    info = running(folder)
    if info is None:
        raise CommandError(
            "unreachable",
            f"no platform runs in {folder.path}: start it with `serve up --detach`, or name another with --url",
        )
    return _local(info, folder)


def connect_or_start(url: str | None, home: str | None, wait_s: float) -> Connection:
    """Return clients for the platform; without a URL, start the local platform where none runs."""
    folder = Home(home)
    if url is None and running(folder) is None:
        start_detached(folder, wait_s)
    return connect(url, home)


def _remote(url: str, folder: Home) -> Connection:
    if "://" not in url:
        url = "http://" + url
    host = _host(url)
    if host is None:
        raise usage(f"'{url}' is not the address of a platform: write http://HOST:PORT")
    # The token in the home opens the platform on this machine; another machine must not learn it.
    token = folder.token() if _is_loopback(host) else os.environ.get("SERVE_TOKEN")
    client = Client(url, token)
    return Connection(client, client)


def _local(info: PlatformInfo, folder: Home) -> Connection:
    token = folder.token()
    return Connection(Client(info.admin_url, token, starting=True), Client(info.url, token, starting=True))


def _host(url: str) -> str | None:
    """Return the host of an http(s) URL, None where it is none."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        return None
    return parts.hostname if is_address else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
