"""A platform process that keeps the contract of `serve.platform` (lock, `platform.json`, SIGTERM) around the fake.

`STAND_IN=broken` ends it at the start; `STAND_IN=mute` never answers; `STAND_IN=stubborn` ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import socket
import sys
import time

import uvicorn

from serve.core.home import Home, PlatformInfo
from tests.cli.fake_control import TOKEN, FakePlatform, app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    mode = os.environ.get("STAND_IN")
    if mode == "broken":
        sys.exit(json.dumps({"level": "ERROR", "message": "the price book is damaged: correct prices.yaml"}))
    home = Home(arguments.home)
    home.create()
    home.token_file.write_text(TOKEN)
    with home.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if mode == "mute":
            time.sleep(60)
        listener = socket.create_server((arguments.host, arguments.port))
        url = "http://{}:{}".format(*listener.getsockname())
        if mode == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        home.write_info(PlatformInfo(url, url, os.getpid(), "0", time.time_ns()))
        server = uvicorn.Server(uvicorn.Config(app(FakePlatform()), log_level="error"))
        if mode == "stubborn":
            server.handle_exit = lambda *_: None  # type: ignore[method-assign]
        server.run(sockets=[listener])
        home.info_file.unlink()


main()
