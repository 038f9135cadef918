"""One tree of errors: what a caller reads of each."""

from collections.abc import Iterator

import pytest

from serve.core.errors import PublishError, QueueFull, ServeError, UnknownModel


def tree(root: type[ServeError]) -> Iterator[type[ServeError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


# Other packages may hang their own errors into the tree: these are the words all share.
ERRORS = [error for error in tree(ServeError) if error.__module__ == ServeError.__module__]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in ERRORS]
    assert len(codes) > 20
    assert sorted(codes) == sorted(set(codes))
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_status_that_says_error(error: type[ServeError]) -> None:
    assert error.status in {400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 501, 502, 503, 504, 507}
    assert (error.status == 422) == issubclass(error, PublishError)


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [
        (0.0, "1", "1"),
        (0.0001, "1", "1"),
        (0.3, "1", "300"),
        (1.0, "1", "1000"),
        (1.0001, "2", "1001"),
        (75, "75", "75000"),
    ],
)
def test_retry_after_is_whole_seconds_of_at_least_one(retry_after_s: float, seconds: str, milliseconds: str) -> None:
    error = QueueFull("The queue is full.", retry_after_s=retry_after_s)
    assert error.headers() == {"retry-after": seconds, "retry-after-ms": milliseconds}


@pytest.mark.parametrize("error", [error for error in ERRORS if error.status == 503])
def test_every_503_says_when_to_come_back_also_where_nobody_knows(error: type[ServeError]) -> None:
    assert int(error("It is not there now.").headers()["retry-after"]) >= 1


def test_an_error_without_hope_says_nothing_of_retrying() -> None:
    assert UnknownModel("Request for unknown model: 'x' is not found").headers() == {}


def test_the_body_has_sentence_code_request_and_details() -> None:
    error = UnknownModel("Request for unknown model: 'x' is not found", files=["a"])
    assert str(error) == "Request for unknown model: 'x' is not found"
    assert error.body() == {"error": str(error), "code": "unknown_model", "files": ["a"]}
    assert error.body("w-1")["request_id"] == "w-1"
