"""Where the platform listens: every way to write a loopback address, and a sentence for what is none."""

from __future__ import annotations

import socket

import pytest

from serve.core.settings import PlatformSettings
from serve.platform import StartError, bind


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_in_every_spelling_is_bound_and_its_url_works(host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    sockets, (url, admin_url) = bind(PlatformSettings(host=host, port=0, admin_port=0))
    try:
        assert url != admin_url
        socket.create_connection((host, int(url.rsplit(":", 1)[1])), 5).close()
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "a..b"])
def test_what_is_no_loopback_address_is_refused_with_a_sentence(host: str) -> None:
    with pytest.raises(StartError, match=r"refused|no address"):
        bind(PlatformSettings(host=host, port=0))
