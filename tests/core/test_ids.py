"""Names and ids."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core.ids import (
    RESERVED_NAMES,
    RequestIds,
    RevisionKey,
    check_name,
    default_name,
    new_replica_id,
    new_writer_id,
)

LEGAL = string.ascii_letters + string.digits


@pytest.mark.parametrize("name", ["d", "7", "digits", "Digits_v2.1-b", "a" * 63])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 64, "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "a\0", "..", "a%2f"],
)
def test_a_bad_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 63 letters"):
        check_name(name)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_words_of_the_protocol_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="choose another name"):
        check_name(name)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("digits.onnx", "digits"),
        ("examples/digits/model.onnx", "digits"),
        ("/srv/bert/saved_model", "bert"),
        ("bert/pytorch_model.bin", "bert"),
        ("model.onnx", "model"),
        ("./model.onnx", "model"),
        ("my model (final).onnx", "my-model-final"),
        ("models/resnet50-v2.7.onnx", "resnet50-v2.7"),
        ("models/resnet/", "resnet"),
        ("https://example.org/zoo/resnet50.onnx", "resnet50"),
        ("https://example.org/zoo/resnet50.onnx?download=true&sig=a/b.c", "resnet50"),
        ("https://example.org/resnet/model.onnx?v=2", "resnet"),
        ("https://example.org/resnet/model.onnx#sha256=ab/cd.ef", "resnet"),
        ("https://example.org/resnet/?v=2", "resnet"),
        ("what?.onnx", "what"),
        ("model#2.onnx", "model-2"),
        ("s3://bucket/digits/model.onnx", "digits"),
        ("a" * 70 + ".onnx", "a" * 63),
        (".onnx", "onnx"),
    ],
)
def test_the_default_name_is_what_a_person_would_call_the_model(model: str, name: str) -> None:
    assert default_name(model) == name


@given(model=st.text(max_size=120))
def test_a_default_name_is_legal_empty_or_reserved(model: str) -> None:
    name = default_name(model)
    if name and name not in RESERVED_NAMES:
        assert check_name(name) == name


def test_replica_ids_tell_the_revision_and_are_never_the_same() -> None:
    made = {new_replica_id(RevisionKey("digits", 3)) for _ in range(500)}
    assert len(made) == 500
    assert all(re.fullmatch(r"digits-r3-[a-z2-7]{8}", replica_id) for replica_id in made)


def test_request_ids_count_within_a_writer() -> None:
    writer = new_writer_id()
    ids = RequestIds(writer)
    assert [ids.next(), ids.next()] == [f"{writer}-1", f"{writer}-2"]
    assert re.fullmatch(r"[a-z2-7]{8}", writer)
    assert new_writer_id() != writer


def test_a_revision_key_reads_as_people_write_it() -> None:
    assert str(RevisionKey("digits", 3)) == "digits-r3"
