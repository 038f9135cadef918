"""A model that answers its inputs, in this process: decoder and encoder with nothing but a run between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.decode import InferRequest, RequestDecoder
from runtime.encode import AnswerEncoder, Body
from runtime.engines.base import Loaded, TensorSpec
from runtime.tensors import DATATYPES, RequestRejected, join, object_array
from serve.core.frames import NO_JSON_LENGTH, Codec, Content


class Answer(NamedTuple):
    content: int
    message: dict[str, Any]
    binary: bytes

    @property
    def output(self) -> dict[str, Any]:
        (output,) = self.message["outputs"]
        assert isinstance(output, dict)
        return output


class EchoModel:
    """Output `out_N` answers input `in_N`."""

    def __init__(
        self, *tensors: tuple[str, Sequence[int]], batchable: bool = True, optional: Sequence[str] = ()
    ) -> None:
        self.loaded = Loaded(
            platform="echo",
            version="1",
            inputs=tuple(TensorSpec(f"in_{i}", kind, tuple(shape)) for i, (kind, shape) in enumerate(tensors)),
            outputs=tuple(TensorSpec(f"out_{i}", kind, tuple(shape)) for i, (kind, shape) in enumerate(tensors)),
            batchable=batchable,
            mapped_ns=0,
            optional=frozenset(optional),
        )
        self.decoder = RequestDecoder(self.loaded, "echo")
        self.encoder = AnswerEncoder(self.loaded, "echo", "3")

    def decode(self, message: Any, binary: bytes | None = None) -> InferRequest:
        """Decode a message with its binary data behind it (None: JSON only). `bytes` messages are taken as they are."""
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        json_length = NO_JSON_LENGTH if binary is None else len(text)
        return self.decoder.decode(Codec.OIP, json_length, memoryview(text + (binary or b"")))

    def ask(self, message: Any, binary: bytes | None = None) -> Answer:
        (answer,) = self.answer([self.decode(message, binary)])
        return answer

    def ask_raw(self, body: bytes) -> Answer:
        (answer,) = self.answer([self.decoder.decode(Codec.OIP_RAW, NO_JSON_LENGTH, memoryview(body))])
        return answer

    def answer(self, members: list[InferRequest]) -> list[Answer]:
        """Run the members as one batch. Raise the first refusal."""
        layout = members[0].layout
        arrays = {}
        for place, name in enumerate(layout.names):
            shape = layout.shapes[place]
            if len(members) > 1:
                shape = (sum(member.layout.rows for member in members), *shape[1:])
            datatype = DATATYPES[self.loaded.inputs[int(name[3:])].datatype]
            array = join(datatype, [member.parts[place] for member in members], shape)
            assert array.dtype == datatype.dtype
            arrays[f"out_{name[3:]}"] = array
        return [read_answer(body) for body in self.encoder.encode(members, arrays)]


def read_answer(body: Body | RequestRejected) -> Answer:
    """Read an answer as a client does."""
    if isinstance(body, RequestRejected):
        raise body
    status, content, json_length, text, raws = body
    assert status == 200
    if content == Content.OIP_BINARY:
        assert json_length == len(text)
    else:
        assert json_length == NO_JSON_LENGTH
        assert not raws
    message = json.loads(text)
    binary = b"".join(raws)
    sizes = [o["parameters"]["binary_data_size"] for o in message["outputs"] if "parameters" in o]
    assert sum(sizes) == len(binary)
    return Answer(content, message, binary)


def binary_of(datatype: str, values: Any) -> bytes:
    """Return the bytes of an array as the protocol sends them."""
    if datatype == "BYTES":
        return b"".join(len(item).to_bytes(4, "little") + item for item in values.flat)
    data: bytes = values.tobytes()
    return data


SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3,), (2, 3), (2, 0, 3), (2, 1, 2))


def sample(datatype: str, shape: tuple[int, ...]) -> Any:
    """Return an array that holds the extremes of its datatype."""
    count = int(np.prod(shape))
    kind = DATATYPES[datatype]
    pool: list[Any]
    if datatype == "BYTES":
        words = [b"a\x00b", "é".encode(), b"", b"\x01\x02", b"plain"]
        return object_array([words[i % 5] for i in range(count)], shape)
    if datatype == "BOOL":
        pool = [True, False]
    elif kind.dtype.kind in "iu":
        pool = [np.iinfo(kind.dtype).max, np.iinfo(kind.dtype).min, 1]
    else:
        pool = [np.finfo(kind.dtype).max, np.finfo(kind.dtype).tiny, -1.5]
    return np.array([pool[i % len(pool)] for i in range(count)], dtype=kind.dtype).reshape(shape)
