"""The `serve` package with a stand-in for `serve.platform`, for tests of `serve up`: all else is the real package."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[4] / "serve"))
