"""From the outputs of a run to the bodies of its answers (Open Inference Protocol, REST).

A batch is written column by column: one JSON pass, or one view, per output for all members, then cut apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtime import jsoncodec
from runtime.decode import InferRequest
from runtime.engines.base import Loaded
from runtime.tensors import Array, RequestRejected, as_bytes, to_binary
from serve.core.frames import NO_JSON_LENGTH, Content

_CACHE_ENTRIES = 256


class Body(NamedTuple):
    """An answer without its frame."""

    status: int
    content: int
    json_length: int
    pieces: tuple[bytes | memoryview, ...]
    """JSON, then the binary outputs, as views where that saves a copy."""


class WrongRows(Exception):
    """The outputs do not have one row for each row of the batch: the members cannot be told apart."""


_Written = tuple[bytes, bytes | memoryview | None]
"""One output of one answer: its JSON object, and its raw bytes where it is binary."""


class AnswerEncoder:
    """Encodes answers of one model. Owned by the replica's main thread."""

    def __init__(self, loaded: Loaded, model_name: str, version: str) -> None:
        self._specs = loaded.outputs
        self._head = b'{"model_name":%b,"model_version":%b' % (jsoncodec.dumps(model_name), jsoncodec.dumps(version))
        self._heads: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def encode(self, members: Sequence[InferRequest], results: dict[str, Array]) -> list[Body | RequestRejected]:
        """Return the answer of each member of a run, in order. Raise WrongRows."""
        columns = [self._column(place, members, results) for place in range(len(members[0].wanted))]
        bodies: list[Body | RequestRejected] = []
        for index, member in enumerate(members):
            try:
                bodies.append(self._body(member, [column[index] for column in columns]))
            except RequestRejected as rejected:
                bodies.append(rejected)
        return bodies

    def _body(self, member: InferRequest, outputs: list[_Written | RequestRejected]) -> Body:
        texts, raws, raw_bytes = [], [], 0
        for output in outputs:
            if isinstance(output, RequestRejected):
                raise output
            text, raw = output
            texts.append(text)
            if raw is not None:
                raws.append(raw)
                raw_bytes += len(raw)
        head = self._head
        if member.client_id is not None:
            head += b',"id":' + jsoncodec.dumps(member.client_id)
        text = b'%b,"outputs":[%b]}' % (head, b",".join(texts))
        if raw_bytes:
            return Body(200, Content.OIP_BINARY, len(text), (text, *raws))
        return Body(200, Content.JSON, NO_JSON_LENGTH, (text,))

    def _column(
        self, place: int, members: Sequence[InferRequest], results: dict[str, Array]
    ) -> list[_Written | RequestRejected]:
        """Return one output of all members; `place` is its position in their lists of wanted outputs."""
        index, is_binary = members[0].wanted[place]
        array = results[self._specs[index].name]
        rows = [member.rows for member in members]
        if len(members) > 1 and (array.ndim == 0 or len(array) != sum(rows)):
            raise WrongRows(f"{sum(rows)} rows went in, output '{self._specs[index].name}' has shape {array.shape}")
        is_uniform = rows.count(rows[0]) == len(rows)
        if not is_uniform or array.dtype.kind == "O" or not array.size:
            return self._one_by_one(place, members, array)
        if is_binary or any(member.wanted[place].is_binary for member in members):
            return self._one_by_one(place, members, array)
        head = self._head_of(index, array.shape if len(rows) == 1 else (rows[0], *array.shape[1:]))
        texts = jsoncodec.dumps_rows(array.reshape(len(rows), -1))
        return [(b'%b,"data":[%b]}' % (head, text), None) for text in texts]

    def _one_by_one(
        self, place: int, members: Sequence[InferRequest], array: Array
    ) -> list[_Written | RequestRejected]:
        written: list[_Written | RequestRejected] = []
        start = 0
        for member in members:
            index, is_binary = member.wanted[place]
            part = array if len(members) == 1 else array[start : start + member.rows]
            start += member.rows
            head = self._head_of(index, part.shape)
            if is_binary:
                raw = to_binary(part)
                written.append((b'%b,"parameters":{"binary_data_size":%d}}' % (head, len(raw)), raw))
                continue
            try:
                written.append((b'%b,"data":[%b]}' % (head, self._elements(index, part)), None))
            except RequestRejected as rejected:
                written.append(rejected)
        return written

    def _elements(self, index: int, part: Array) -> bytes:
        if part.size == 0:
            return b""
        if part.dtype.kind != "O":
            return jsoncodec.dumps_rows(part.reshape(1, -1))[0]
        try:
            return jsoncodec.dumps([as_bytes(element).decode() for element in part.flat])[1:-1]
        except UnicodeDecodeError:
            raise RequestRejected(
                f"output '{self._specs[index].name}' holds bytes that are not UTF-8, which JSON cannot carry; "
                "ask for it with the output parameter 'binary_data': true"
            ) from None

    def _head_of(self, index: int, shape: tuple[int, ...]) -> bytes:
        head = self._heads.get((index, shape))
        if head is None:
            spec = self._specs[index]
            head = jsoncodec.dumps({"name": spec.name, "datatype": spec.datatype, "shape": list(shape)})[:-1]
            if len(self._heads) >= _CACHE_ENTRIES:
                self._heads.clear()
            self._heads[index, shape] = head
        return head


def error_body(status: int, code: str, sentence: str, request_id: str) -> Body:
    """Return the body that every refusal has."""
    text = jsoncodec.dumps({"error": sentence, "code": code, "request_id": request_id})
    return Body(status, Content.JSON, NO_JSON_LENGTH, (text,))
