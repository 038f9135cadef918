"""From the outputs of a run to the bodies of its answers (Open Inference Protocol, REST).

A batch is written column by column: one JSON pass, or one view, per output for all members, then cut apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime import jsoncodec
from runtime.decode import InferRequest
from runtime.engines.base import Loaded
from runtime.plans import CACHE_ENTRIES
from runtime.tensors import Array, RequestRejected, as_bytes, to_binary
from serve.core.frames import MAX_PAYLOAD_BYTES, NO_JSON_LENGTH, Content

MAX_ANSWER_BYTES = MAX_PAYLOAD_BYTES - 4096
"""Beyond a frame's limit the platform would take the connection for broken; the rest is for the frame's own heads."""

Body = tuple[int, int, int, bytes, Sequence[bytes | memoryview]]
"""An answer without its frame: status, content, length of the JSON (`ResponseHead`), JSON, binary outputs."""

_Written = tuple[bytes, bytes | memoryview | None]
"""One output of one answer: its JSON object, and its raw bytes where it is binary."""

_JSON = int(Content.JSON)
_OIP_BINARY = int(Content.OIP_BINARY)


class WrongRows(Exception):
    """The outputs do not have one row for each row of the batch: the members cannot be told apart."""


class AnswerEncoder:
    """Encodes answers of one model. Owned by the replica's main thread (its cache)."""

    def __init__(self, loaded: Loaded, model_name: str, version: str) -> None:
        self._specs = loaded.outputs
        self._head = b'{"model_name":%b,"model_version":%b' % (jsoncodec.dumps(model_name), jsoncodec.dumps(version))
        self._heads: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def encode(self, members: Sequence[InferRequest], results: dict[str, Array]) -> list[Body | RequestRejected]:
        """Return the answer of each member of a run, in order. Raise WrongRows."""
        columns = [self._column(place, members, results) for place in range(len(members[0].layout.wanted))]
        if len(columns) == 1:
            return [self._body(member, (output,)) for member, output in zip(members, columns[0], strict=True)]
        return [self._body(member, outputs) for member, *outputs in zip(members, *columns, strict=True)]

    def _body(self, member: InferRequest, outputs: Sequence[_Written | RequestRejected]) -> Body | RequestRejected:
        texts: list[bytes] = []
        raws: list[bytes | memoryview] = []
        for output in outputs:
            if isinstance(output, RequestRejected):
                return output
            text, raw = output
            texts.append(text)
            if raw:
                raws.append(raw)
        head = self._head
        if member.client_id is not None:
            head = b'%b,"id":%b' % (head, jsoncodec.dumps(member.client_id))
        text = b'%b,"outputs":[%b]}' % (head, b",".join(texts))
        size_bytes = len(text) + sum([len(raw) for raw in raws])
        if size_bytes > MAX_ANSWER_BYTES:
            return RequestRejected(
                f"the answer has {size_bytes} bytes, and {MAX_ANSWER_BYTES} is the most that can be sent; ask for "
                "fewer rows or outputs at a time",
                413,
                "too_large",
            )
        if raws:
            return 200, _OIP_BINARY, len(text), text, raws
        return 200, _JSON, NO_JSON_LENGTH, text, ()

    def _column(
        self, place: int, members: Sequence[InferRequest], results: dict[str, Array]
    ) -> Sequence[_Written | RequestRejected]:
        """Return one output of all members; `place` is its position in their lists of wanted outputs."""
        layout = members[0].layout
        output, is_binary = layout.wanted[place]
        array = results[self._specs[output].name]
        count, rows = len(members), layout.rows
        is_uniform = True
        if count > 1:
            total_rows = sum([member.layout.rows for member in members])
            if array.ndim == 0 or len(array) != total_rows:
                raise WrongRows(f"{total_rows} rows went in, output '{self._specs[output].name}' has {array.shape}")
            # Layouts are shared: most batches are of one layout.
            is_uniform = all(member.layout is layout for member in members)
        if is_binary or not is_uniform or array.dtype.kind == "O" or not array.size:
            return self._one_by_one(place, members, array)
        head = self._head_of(output, array.shape if count == 1 else (rows, *array.shape[1:]))
        texts = jsoncodec.dumps_rows(array.reshape(count, -1))
        return [(b'%b,"data":[%b]}' % (head, text), None) for text in texts]

    def _one_by_one(
        self, place: int, members: Sequence[InferRequest], array: Array
    ) -> Sequence[_Written | RequestRejected]:
        written: list[_Written | RequestRejected] = []
        start = 0
        for member in members:
            output, is_binary = member.layout.wanted[place]
            part = array if len(members) == 1 else array[start : start + member.layout.rows]
            start += member.layout.rows
            head = self._head_of(output, part.shape)
            if is_binary:
                raw = to_binary(part)
                written.append((b'%b,"parameters":{"binary_data_size":%d}}' % (head, len(raw)), raw))
                continue
            try:
                written.append((b'%b,"data":[%b]}' % (head, self._elements(output, part)), None))
            except RequestRejected as rejected:
                written.append(rejected)
        return written

    def _elements(self, output: int, part: Array) -> bytes:
        if part.size == 0:
            return b""
        if part.dtype.kind != "O":
            return jsoncodec.dumps_rows(part.reshape(1, -1))[0]
        try:
            return jsoncodec.dumps([as_bytes(element).decode() for element in part.flat])[1:-1]
        except UnicodeDecodeError:
            raise RequestRejected(
                f"output '{self._specs[output].name}' holds bytes that are not UTF-8, which JSON cannot carry; "
                "ask for it with the output parameter 'binary_data': true"
            ) from None

    def _head_of(self, output: int, shape: tuple[int, ...]) -> bytes:
        head = self._heads.get((output, shape))
        if head is None:
            spec = self._specs[output]
            head = jsoncodec.dumps({"name": spec.name, "datatype": spec.datatype, "shape": list(shape)})[:-1]
            if len(self._heads) >= CACHE_ENTRIES:
                self._heads.clear()
            self._heads[output, shape] = head
        return head


def error_body(rejected: RequestRejected, request_id: str) -> Body:
    """Return the body that every refusal has."""
    text = jsoncodec.dumps({"error": str(rejected), "code": rejected.code, "request_id": request_id})
    return rejected.status, _JSON, NO_JSON_LENGTH, text, ()
