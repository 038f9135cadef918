"""Reading and changing deployments, calling them, and the bill: one test a promise of the page `docs/cli.md`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Served
from tests.cli.fake_control import BILL, DECISIONS, DEPLOYMENT, FORECAST, HISTORY, LOGS, THREE

REQUEST = '{"inputs": [{"name": "pixels", "shape": [1, 1], "datatype": "FP32", "data": [[3]]}]}'


@pytest.fixture
def digits(served: Served) -> Served:
    served.state.deployments["digits"] = DEPLOYMENT
    return served


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        (["ls"], "deployments", [DEPLOYMENT]),
        (["history", "digits"], "revisions", HISTORY),
        (["explain", "digits"], "decisions", DECISIONS),
        (["bill"], "rows", BILL["rows"]),
        (["bill", "verify"], "ok", True),
        (["status", "digits"], "state", "ready"),
    ],
)
def test_every_read_prints_the_platforms_json(digits: Served, command: list[str], key: str, value: object) -> None:
    result = digits.serve(*command, "--json")
    assert result.exit_code == 0, result.err
    assert result.json[key] == value
    assert result.err == ""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["ls"], ["NAME", "digits", "cold", "60 s", "team=vision"]),
        (
            ["status", "digits"],
            ["ready", "revision 1", "31.5 ms (p50), 40.0 ms (p95) until ready", "digits-r1-aaaa", "32.0 MiB"],
        ),
        (["history", "digits"], ["idle 60 → 30", "2.0 KiB", "cdcdcdcdcdcd", "*"]),
        (["explain", "digits"], ["     7  0 → 1     1 request waits"]),
        (["bill"], ["DEPLOYMENT", "digits", "0.0000015", "total"]),
        (["bill", "verify"], ["note: one torn tail", "adds up (1 replica life, 5 inferences)"]),
        (["rollback", "digits", "1"], ["digits: revision 1 takes the traffic"]),
    ],
)
def test_people_get_aligned_text_without_colour_in_a_pipe(digits: Served, command: list[str], words: list[str]) -> None:
    result = digits.serve(*command)
    assert result.exit_code == 0, result.err
    for word in words:
        assert word in result.out
    assert "\x1b" not in result.out + result.err


def test_force_color_colours_a_pipe_and_no_color_wins(digits: Served) -> None:
    assert "\x1b[" in digits.serve("ls", FORCE_COLOR="1").out
    assert "\x1b[3" not in digits.serve("ls", FORCE_COLOR="1", NO_COLOR="1").out


@pytest.mark.parametrize("command", ["status", "history", "explain", "logs", "rollback", "delete"])
def test_an_unknown_deployment_exits_3_with_the_platforms_code(digits: Served, command: str) -> None:
    flags = ["--yes"] if command == "delete" else []
    result = digits.serve(command, "nobody", "--json", *flags)
    assert result.exit_code == 3
    assert result.json["code"] == "unknown_model"


def test_nothing_deployed_says_what_to_do_and_json_stays_a_list(served: Served) -> None:
    assert "serve deploy model.onnx" in served.serve("ls").err
    assert served.serve("ls", "--json").json == {"deployments": []}


def test_delete_without_a_terminal_asks_nobody_and_names_the_flag(digits: Served) -> None:
    result = digits.serve("delete", "digits")
    assert result.exit_code == 2
    assert "--yes" in result.err
    assert digits.serve("delete", "digits", "--yes").exit_code == 0
    assert digits.state.deployments == {}


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"y\n", 0)])
def test_delete_on_a_terminal_asks_first(digits: Served, answer: bytes, left: int) -> None:
    master, slave = pty.openpty()
    arguments = [*COMMAND, "delete", "digits"]
    child = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, env=digits.serve.environment)
    os.close(slave)
    os.write(master, answer)
    assert child.wait(30) == 0
    os.close(master)
    assert len(digits.state.deployments) == left


def test_predict_prints_each_output_and_a_label_plainly(digits: Served, folder: Path) -> None:
    (folder / "three.json").write_text(REQUEST)
    result = digits.serve("predict", "digits", "--input", "three.json")
    assert result.exit_code == 0, result.err
    label, probabilities = (line.split() for line in result.out.splitlines())
    assert label == ["label", "INT64", "[1]", "3"]
    assert probabilities[-3:] == ["0.25", "0.0625", "0.6875"]
    assert digits.state.infers == [REQUEST.encode()]
    assert result.err.startswith("cold start 4.00 ms (queue 0.50 ms, spawn 1.50 ms, infer 2.00 ms)")
    assert "cost 0.000000123 USD" in result.err


def test_predict_reads_stdin_asks_a_revision_and_prints_the_raw_answer(digits: Served) -> None:
    result = digits.serve("predict", "digits", "--input", "-", "--revision", "4", "--json", stdin=REQUEST)
    assert result.json == THREE
    assert digits.state.paths("POST") == ["/v2/models/digits/versions/4/infer"]


@pytest.mark.parametrize(
    ("text", "sentence"), [("", "is not JSON"), ("[]", "needs a list"), ("[" * 100_000, "is not JSON")]
)
def test_predict_refuses_what_is_no_request_without_a_call(digits: Served, text: str, sentence: str) -> None:
    result = digits.serve("predict", "digits", "--input", "-", stdin=text)
    assert result.exit_code == 2
    assert sentence in result.err
    assert digits.state.calls == []


def test_a_queue_timeout_and_our_own_deadline_exit_6(digits: Served) -> None:
    late = digits.serve("predict", "waits", "--input", "-", "--json", stdin=REQUEST)
    assert (late.exit_code, late.json["code"]) == (6, "queue_timeout")
    ours = digits.serve("predict", "stalls", "--input", "-", "--json", "--timeout", "0.5", stdin=REQUEST)
    assert (ours.exit_code, ours.json["code"]) == (6, "wait_timeout")


def test_logs_print_lines_follow_and_filter_by_request(digits: Served) -> None:
    assert digits.serve("logs", "digits").out.splitlines()[1] == "digits-r1-aaaa request w-7 took long"
    assert digits.serve("logs", "digits", "-f").out.endswith("a later line\n")
    filtered = digits.serve("logs", "digits", "--request-id", "w-7", "--tail", "5", "--json")
    assert [json.loads(line) for line in filtered.out.splitlines()] == LOGS[1:]
    assert digits.state.calls[-1][2] == {"request_id": "w-7", "tail": "5"}


def test_bill_takes_durations_and_dates_and_sends_instants(digits: Served) -> None:
    assert digits.serve("bill", "--by", "label:team", "--since", "2026-11-01", "--until", "1h", TZ="UTC").exit_code == 0
    sent = digits.state.calls[-1][2]
    assert sent["by"] == "label:team"
    assert sent["since"] == "2026-11-01T00:00:00Z"
    assert sent["until"].endswith("Z")


def test_bill_as_csv_is_the_platforms_csv(digits: Served) -> None:
    assert digits.serve("bill", "--csv").out == "currency,group,cost_nano\nUSD,digits,1500\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--by", "colour"], "use deployment, revision, label:KEY, hour or day"),
        (["--since", "yesterday"], "write 2h, 1d or"),
        (["--since", "9999999999d"], "write 2h, 1d or"),
        (["--csv", "--json"], "exclude each other"),
    ],
)
def test_bill_refuses_what_it_cannot_mean(digits: Served, flags: list[str], sentence: str) -> None:
    result = digits.serve("bill", *flags)
    assert result.exit_code == 2
    assert sentence in result.err + result.out


def test_a_ledger_that_does_not_add_up_exits_1_and_lists_the_problems(digits: Served) -> None:
    digits.state.bill_ok = False
    result = digits.serve("bill", "verify")
    assert result.exit_code == 1
    assert "problem: digits-r1-aaaa" in result.out
    assert "does not add up: 1 problem (" in result.out


def test_a_terminal_without_our_characters_gets_them_spelled_out(digits: Served) -> None:
    result = digits.serve("explain", "digits", PYTHONIOENCODING="ascii")
    assert (result.exit_code, result.err) == (0, "")
    assert "0 \\u2192 1" in result.out
    assert digits.serve("explain", "digits", "--json", PYTHONIOENCODING="ascii").json["decisions"] == DECISIONS


@pytest.mark.parametrize("command", [["status", "\udcff"], ["logs", "\udcff"], ["bill", "--by", "label:\udcff"]])
def test_arguments_that_are_no_text_are_refused_by_the_platform_not_by_a_traceback(
    digits: Served, command: list[str]
) -> None:
    assert "Traceback" not in digits.serve(*command).err


@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["bill", "--csv"]])
def test_output_that_cannot_be_written_exits_1_with_a_sentence(digits: Served, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=digits.serve.environment,
            timeout=40,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the system refused it ([Errno 28] No space left on device)")
    assert "Traceback" not in done.stderr


def test_names_of_deployments_complete_in_the_shell(digits: Served) -> None:
    digits.state.deployments["other"] = DEPLOYMENT | {"name": "other"}
    environment = {"_SERVE_COMPLETE": "complete_bash", "COMP_WORDS": "serve status d", "COMP_CWORD": "2"}
    assert digits.serve(**environment).out.split() == ["digits"]


def test_completion_is_silent_where_no_platform_runs(served: Served, model: Callable[..., Path]) -> None:
    environment = {"_SERVE_COMPLETE": "complete_bash", "COMP_WORDS": "serve status d", "COMP_CWORD": "2"}
    result = served.serve(**environment, SERVE_URL="http://127.0.0.1:1")
    assert (result.out.strip(), result.err) == ("", "")


def test_what_if_shows_recorded_simulated_and_forecast_side_by_side(digits: Served) -> None:
    result = digits.serve("explain", "digits", "--what-if", "idle=10s,max=4", "--since", "2026-11-01T00:00+00:00")
    assert result.exit_code == 0
    lines = result.out.splitlines()
    assert lines[0] == "digits revision 2, 4.6 days; idle: 60 → 10, max: unset → 4"
    cells = {line[:16].strip(): line[16:].split() for line in lines[3:-2]}
    assert lines[2].split() == ["FIGURE", "RECORDED", "AS", "IT", "WAS", "WHAT", "IF"]
    assert cells["requests"] == ["120"] * 3
    assert cells["refused"] == ["-", "0", "1"]
    assert cells["cost, USD"] == ["0.000061", "0.000061", "0.00003782"]
    assert cells["waiting p99"] == ["31.2", "ms", "-", "31.2", "ms"]
    assert lines[-1] == FORECAST["conclusion"]
    assert FORECAST["weak"] in result.err
    asked = next(query for _, path, query in digits.state.calls if path.endswith("/what-if"))
    assert asked == {"changes": "idle=10s,max=4", "since": "2026-11-01T00:00:00Z"}


def test_what_if_looks_back_a_week_unless_told_and_gives_the_whole_answer_as_json(digits: Served) -> None:
    assert digits.serve("explain", "digits", "--what-if", "min=1", "--json").json == FORECAST
    since = datetime.fromisoformat(digits.state.calls[-1][2]["since"])
    assert timedelta(days=6.9) < datetime.now(UTC) - since < timedelta(days=7.1)
    result = digits.serve("explain", "digits", "--since", "1d")
    assert result.exit_code == 2
    assert "--since and --until belong to --what-if" in result.err
