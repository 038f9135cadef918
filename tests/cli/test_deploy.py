"""`serve deploy` against the contract: what it sends, what it prints, how it fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command, Served
from tests.cli.fake_control import WEIGHTS_MARK

MakeModel = Callable[..., Path]


def test_a_model_file_is_uploaded_by_digest_and_the_receipt_names_every_measured_figure(
    served: Served, model: MakeModel
) -> None:
    model()
    result = served.serve("deploy", "digits/model.onnx")
    assert result.exit_code == 0, result.err
    assert served.state.blobs == {hashlib.sha256(b"onnx").hexdigest(): b"onnx"}
    assert served.state.deploys[-1]["spec"] == {"name": "digits"}
    for figure in (
        "31.2 ms",
        "  spawn",
        "7.00 ms",
        "0.42 ms",
        "40.0 MiB",
        "0.000012",
        "0.000352",
        "at zero",
        "curl -s",
    ):
        assert figure in result.out
    assert "check digits" in result.err
    assert "check digits" not in result.out


def test_json_prints_the_receipt_alone_on_stdout(served: Served, model: MakeModel) -> None:
    model()
    receipt = served.serve("deploy", "digits/model.onnx", "--json").json
    assert receipt["cost"]["per_1000_calls"] == "0.000012"
    assert receipt["unchanged"] is False


def test_the_same_deploy_again_uploads_nothing_and_says_unchanged(served: Served, model: MakeModel) -> None:
    model()
    served.serve("deploy", "digits/model.onnx")
    again = served.serve("deploy", "digits/model.onnx")
    assert again.exit_code == 0
    assert "unchanged" in again.out
    assert len(served.state.paths("PUT")) == 1


def test_flags_win_over_the_file_and_labels_are_joined(served: Served, model: MakeModel, folder: Path) -> None:
    model("models/m.onnx")
    (folder / "models" / "serve.yaml").write_text(
        "model: m.onnx\nname: from-file\nidle: 5m\nmin: 1\nlabels: {team: a, cost: x}\n"
    )
    flags = ("-f", "models/serve.yaml", "--idle", "30s", "--label", "team=b", "--engine-setting", "x=4")
    result = served.serve("deploy", *flags)
    assert result.exit_code == 0, result.err
    assert served.state.deploys[-1]["spec"] == {
        "name": "from-file",
        "idle": "30s",
        "min": 1,
        "labels": {"team": "b", "cost": "x"},
        "engine_settings": {"x": 4},
    }
    assert served.state.deploys[-1]["model"]["file"] == "m.onnx"


def test_external_data_is_found_beside_the_model(served: Served, model: MakeModel) -> None:
    model(content=WEIGHTS_MARK + b"weights/a.bin,b.bin")
    model("digits/weights/a.bin", b"aaa")
    model("digits/b.bin", b"bb")
    result = served.serve("deploy", "digits/model.onnx")
    assert result.exit_code == 0, result.err
    assert [file["path"] for file in served.state.deploys[-1]["model"]["files"]] == [
        "model.onnx",
        "weights/a.bin",
        "b.bin",
    ]
    assert sorted(len(blob) for blob in served.state.blobs.values()) == [2, 3, 34]
    again = served.serve("deploy", "digits/model.onnx")
    assert again.exit_code == 0, again.err
    assert len(served.state.paths("PUT")) == 3, "what the platform has is not sent again"


def test_two_names_of_the_same_bytes_are_sent_once(served: Served, model: MakeModel) -> None:
    model(content=WEIGHTS_MARK + b"a.bin,b.bin")
    model("digits/a.bin", b"same")
    model("digits/b.bin", b"same")
    assert served.serve("deploy", "digits/model.onnx").exit_code == 0
    assert len(served.state.paths("PUT")) == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--idle", "abc"], "idle: 'abc' is not a duration: write 60s, 5m or 1h30m"),
        (["--max", "0"], "max is 0: give 1 or more"),
        (["--min", "5", "--max", "2"], "max (2) is below min (5)"),
        (["--queue-bytes", "3furlongs"], "give bytes, or a size such as 256MiB"),
        (["-f", "serve.yaml"], "idel is not a setting: did you mean idle?"),
    ],
)
def test_a_setting_that_cannot_be_is_a_usage_error_before_any_call_or_platform(
    served: Served, alone: Command, model: MakeModel, folder: Path, flags: list[str], sentence: str
) -> None:
    model()
    (folder / "serve.yaml").write_text("idel: 5s\n")
    for serve in (served.serve, alone):
        result = serve("deploy", "digits/model.onnx", *flags, "--json")
        assert result.exit_code == 2
        assert result.json["code"] == "invalid_spec"
        assert sentence in result.json["error"]
    assert served.state.calls == []
    assert not (folder / "home").exists()


def test_a_setting_that_only_the_platform_can_refuse_is_a_usage_error_too(served: Served, model: MakeModel) -> None:
    model()
    result = served.serve("deploy", "digits/model.onnx", "--name", "refused", "--json")
    assert (result.exit_code, result.json["code"]) == (2, "invalid_spec")


def test_external_data_outside_the_models_folder_is_never_uploaded(served: Served, model: MakeModel) -> None:
    secret = model("secret.txt", b"private")
    model("digits/folder/x", b"").parent.joinpath("link").symlink_to(secret)
    for path in ("../secret.txt", str(secret), "folder/link", "folder/../../secret.txt"):
        model(content=WEIGHTS_MARK + path.encode())
        result = served.serve("deploy", "digits/model.onnx", "--json")
        assert result.exit_code == 5, path
        assert result.json["code"] == "files_missing"
        assert path in result.json["error"]
    assert b"private" not in served.state.blobs.values()


def test_external_data_that_is_not_there_is_named_with_its_folder(served: Served, model: MakeModel) -> None:
    path = model(content=WEIGHTS_MARK + b"weights.bin")
    result = served.serve("deploy", "digits/model.onnx")
    assert result.exit_code == 5
    assert f"'weights.bin', which is not in {path.parent}" in result.err


def test_a_folder_with_one_model_is_that_model_and_with_two_a_question(served: Served, model: MakeModel) -> None:
    model("net/best.onnx")
    assert served.serve("deploy", "net").exit_code == 0
    assert served.state.deploys[-1]["spec"]["name"] == "best"
    model("net/other.onnx")
    two = served.serve("deploy", "net")
    assert two.exit_code == 2
    assert "best.onnx, other.onnx" in two.err
    model("empty/readme.txt")
    assert "has no *.onnx file" in served.serve("deploy", "empty").err


def test_a_url_is_fetched_by_the_platform(served: Served) -> None:
    result = served.serve("deploy", "https://models.example/digits/model.onnx")
    assert result.exit_code == 0, result.err
    assert served.state.deploys[-1]["model"] == {"url": "https://models.example/digits/model.onnx"}
    assert served.state.deploys[-1]["spec"]["name"] == "digits"


def test_a_sample_goes_along(served: Served, model: MakeModel, folder: Path) -> None:
    model()
    (folder / "sample.json").write_text('{"inputs": [1]}')
    served.serve("deploy", "digits/model.onnx", "--sample", "sample.json")
    assert served.state.deploys[-1]["sample"] == {"inputs": [1]}


def test_a_failed_deploy_exits_5_with_the_platforms_sentence_and_code(served: Served, model: MakeModel) -> None:
    model()
    people = served.serve("deploy", "digits/model.onnx", "--name", "broken")
    program = served.serve("deploy", "digits/model.onnx", "--name", "broken", "--json")
    assert people.exit_code == program.exit_code == 5
    assert people.out == ""
    assert "error: not an ONNX file: export it" in people.err
    assert program.json == {"error": "not an ONNX file: export it", "code": "model_invalid"}


def test_an_answer_that_ends_early_is_a_failed_deploy(served: Served, model: MakeModel) -> None:
    model()
    assert served.serve("deploy", "digits/model.onnx", "--name", "cut").exit_code == 5


def test_a_deploy_that_takes_longer_than_wait_exits_6(served: Served, model: MakeModel) -> None:
    model()
    result = served.serve("deploy", "digits/model.onnx", "--name", "stalls", "--wait", "0.5s", "--json")
    assert result.exit_code == 6
    assert result.json["code"] == "wait_timeout"


def test_a_model_nobody_could_verify_is_deployed_with_a_warning(served: Served, model: MakeModel) -> None:
    model()
    result = served.serve("deploy", "digits/model.onnx", "--name", "unverified")
    assert result.exit_code == 0
    assert "loaded, not verified" in result.out
    assert "warning: no sample ran" in result.err
    assert (result.out + result.err).count("no sample ran") == 1
    assert "call it" not in result.out


def test_input_that_cannot_be_a_model_is_refused_with_a_remedy_before_any_call(
    served: Served, model: MakeModel, folder: Path
) -> None:
    model()
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "torn.yaml").write_text("idle: [1\n")
    (folder / "text.json").write_text("hello")
    cases = {
        ("absent.onnx",): "there is no file 'absent.onnx'",
        (): "name a model",
        ("/dev/null",): "neither a file nor a folder",
        ("digits/model.onnx", "--name", "a/b"): "cannot name a deployment",
        ("digits/model.onnx", "--name", "stats"): "choose another name",
        ("digits/model.onnx", "--label", "team"): "--label KEY=VALUE",
        ("digits/model.onnx", "--wait", "soon"): "--wait 'soon' is not a duration",
        ("digits/model.onnx", "-f", "none.yaml"): "cannot read 'none.yaml'",
        ("digits/model.onnx", "-f", "list.yaml"): "must hold keys and values",
        ("digits/model.onnx", "-f", "torn.yaml"): "is not YAML",
        ("digits/model.onnx", "--sample", "text.json"): "is not JSON",
    }
    for arguments, sentence in cases.items():
        result = served.serve("deploy", *arguments, "--json")
        assert result.exit_code == 2, arguments
        assert sentence in result.json["error"], arguments
        assert json.loads(result.out)["code"] == "usage"
    assert served.state.calls == []
