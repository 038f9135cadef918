"""Compressed bodies: unpacked in pieces, so that neither memory nor time depends on what a sender claims."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from serve.core.errors import BadRequest

PIECE_BYTES = 256 * 1024
"""Unpacking as much takes well below a millisecond."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib looks at the first bytes which of the two it is: senders mix the names up."""


class Inflater:
    """One body with `Content-Encoding: gzip` or `deflate` (RFC 9110, 8.4.1)."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)

    def pieces(self, part: bytes) -> Iterator[bytes]:
        """Yield what `part` unpacks to, at most PIECE_BYTES at once. Raise BadRequest."""
        while part and not self._stream.eof:
            try:
                piece = self._stream.decompress(part, PIECE_BYTES)
            except zlib.error as error:
                raise BadRequest(f"The body is not what its Content-Encoding says: {error}") from None
            part = self._stream.unconsumed_tail
            yield piece
        if part or self._stream.unused_data:
            raise BadRequest("Bytes follow the end of the compressed body: compress it as one stream")

    def finish(self) -> None:
        """Raise BadRequest if the body ended too early."""
        if not self._stream.eof:
            raise BadRequest("The compressed body ends too early: send all of it")
