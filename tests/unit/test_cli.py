"""bridgectl: its help, its exit codes, and one sentence on standard error where somebody can act."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge_shared.errors import ConfigError
from bridge_shared.protocol.audiocodes import Violation
from bridge_sim.report import CallReport
from deepgram_audiocodes_bridge import cli, cli_call

COMMANDS = ["up", "edge", "worker", "call", "agent", "config"]
OURS = ("BRIDGE_", "REDIS_URL", "DEEPGRAM_", "AC_TOKEN")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(OURS)}, **variables}


def bridgectl(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", *arguments]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=50)


def test_help_lists_every_command_and_worked_examples():
    shown = CliRunner().invoke(cli.app, ["--help"], prog_name="bridgectl").output
    for command in COMMANDS:
        assert f"\n  {command} " in shown
    assert "bridgectl up app.py --workers 2" in shown
    assert "Exit codes" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example_of_it(command: str):
    result = CliRunner().invoke(cli.app, [command, "--help"], prog_name="bridgectl")
    assert result.exit_code == 0
    examples = result.output.partition("Example")[2]
    assert f"bridgectl {command}" in examples


def test_without_a_command_the_help_is_shown():
    assert "Commands:" in CliRunner().invoke(cli.app, [], prog_name="bridgectl").output


@pytest.mark.parametrize("module", ["bridge_edge", "bridge_worker"])
def test_the_modules_of_the_contract_are_the_commands(module: str):
    command = module.removeprefix("bridge_")
    run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=50)
    assert run.returncode == 0
    assert f"bridgectl {command} " in run.stdout


def test_a_bad_setting_is_one_sentence_on_standard_error_and_exit_code_2():
    run = bridgectl("config", BRIDGE_PORT="abc")
    assert run.returncode == 2
    assert run.stdout == ""
    sentence = "BRIDGE_PORT: 'abc' is not a whole number. Set it to 1-65535 or leave it unset"
    assert run.stderr == f"bridgectl: {sentence}\n"


# Starting an interpreter for each of them would take longer than all of them do.
EACH = """
import contextlib, io, json, sys
from deepgram_audiocodes_bridge import cli

outcomes = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            cli.main(line.split())
        except SystemExit as stop:
            outcomes[line] = [stop.code, said.getvalue()]
print(json.dumps(outcomes))
"""


def test_what_was_asked_wrongly_exits_with_2_and_says_what_without_a_traceback():
    wrong = {
        "no-such-command": "No such command 'no-such-command'",
        "up --workers 0": "Invalid value for '--workers'",
        "up --port 0": "bridgectl: BRIDGE_PORT: '0' is out of range",
        "worker": "Missing argument 'APP'",
        "worker no/such/file.py": "bridgectl: APP no/such/file.py: is no file",
        "edge": "bridgectl: AC_TOKEN: is not set",
        "call --say nonsense": "bridgectl: --say: there is no 'nonsense'. Choose of",
        "call --format mp3": "bridgectl: --format: there is no 'mp3'. Choose of",
        "call --url http://localhost": "bridgectl: --url: 'http://localhost' does not begin with ws://",
        "call --keys 12x": "bridgectl: --keys: '12x' has what no keypad has. Give keys of",
        "call --calls 2 --wav-out heard.wav": "bridgectl: --wav-out: is for one call",
    }
    command = [sys.executable, "-c", EACH, json.dumps(list(wrong))]
    variables = environment(REDIS_URL="redis://127.0.0.1:1")
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=50, check=True)
    outcomes = json.loads(run.stdout)
    assert {line: code for line, (code, _) in outcomes.items()} == dict.fromkeys(wrong, 2)
    for line, (_, said) in outcomes.items():
        assert wrong[line] in said
        assert "Traceback" not in said


def test_a_call_that_fails_exits_with_1_and_says_why():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    run = bridgectl("call", "--json", "--url", f"ws://127.0.0.1:{port}")
    assert run.returncode == 1
    figures = json.loads(run.stdout)
    assert (figures["calls"], figures["failed"], figures["setup_ms"]) == (1, 1, None)
    assert list(figures["problems"].values()) == [1]
    assert "Traceback" not in run.stderr


def test_config_tells_values_units_defaults_and_origins_and_masks_secrets():
    run = bridgectl("config", "--json", BRIDGE_WORKER_CALLS="7", AC_TOKEN="hunter2", REDIS_URL="redis://:hunter2@h")
    assert run.returncode == 0
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    assert rows["BRIDGE_WORKER_CALLS"] == {
        "name": "BRIDGE_WORKER_CALLS",
        "value": "7",
        "unit": "calls",
        "default": "100",
        "origin": "environment",
        "help": "calls that one worker takes",
    }
    assert rows["BRIDGE_EDGE_CALLS"]["origin"] == "default"
    assert "hunter2" not in run.stdout


def test_config_is_a_table_with_whole_names_even_in_a_pipe():
    run = bridgectl("config", BRIDGE_WORKER_CALLS="7")
    (line,) = [line for line in run.stdout.splitlines() if "BRIDGE_WORKER_CALLS" in line]
    assert line.split()[:6] == ["BRIDGE_WORKER_CALLS", "7", "calls", "100", "calls", "environment"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_says_where_it_listens_and_ends_cleanly_when_told(number: signal.Signals):
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "agent", "--port", "0"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "DEEPGRAM_URL=ws://127.0.0.1:" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_the_agent_names_the_option_if_its_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = bridgectl("agent", "--port", str(taken.getsockname()[1]))
    assert run.returncode == 2
    assert run.stderr.startswith("bridgectl: --port: cannot be listened on")


def test_an_unexpected_error_keeps_its_traceback_and_exits_with_1(tmp_path: Path):
    """A directory where a file of the package should be is nobody's setting."""
    (tmp_path / "uvloop.py").write_text("raise RuntimeError('broken installation')")
    run = bridgectl("config", PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    assert "RuntimeError: broken installation" in run.stderr


def test_a_percentile_is_a_value_that_was_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert [cli_call.percentile(values, p) for p in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert cli_call.percentile([7.0], 50) == cli_call.percentile([7.0], 99) == 7.0


def test_totals_add_up_calls_problems_gaps_and_violations():
    totals = cli_call.Totals()
    good = CallReport("a", setup_ms=12.34, turns=2, answer_ms=[900.0, 1000.0], gaps=[20.0])
    bad = CallReport("b", problem="refused", violations=[Violation("id_reused", "7"), Violation("id_reused", "8")])
    for report in (good, bad):
        totals.add(report)
    assert totals.figures() == {
        "calls": 2,
        "conversation_ids": ["a", "b"],
        "failed": 1,
        "turns": 2,
        "setup_ms": {"p50": 12.3, "p99": 12.3, "max": 12.3},
        "answer_ms": {"p50": 900.0, "p99": 1000.0, "max": 1000.0},
        "interruption_ms": None,
        "underruns": 1,
        "gaps_ms": {"total": 20.0, "max": 20.0},
        "violations": {"id_reused": 2},
        "problems": {"refused": 1},
    }


def test_who_is_refused_for_the_token_is_told_how_to_give_one():
    totals = cli_call.Totals()
    totals.add(CallReport("a", problem="ws://x refused the upgrade with HTTP status 401", status=401))
    totals.add(CallReport("b", problem="ws://x refused the upgrade with HTTP status 503", status=503))
    assert list(totals.problems) == [
        "ws://x refused the upgrade with HTTP status 401: give --token or AC_TOKEN",
        "ws://x refused the upgrade with HTTP status 503",
    ]


def test_barge_in_interrupts_the_first_answer_if_there_is_something_to_say():
    two = cli_call.Options("ws://x", say=("opening_hours", "thank_you"), barge_in=True).plan()
    assert (two.barge_in, two.barge) == (True, 0)
    one = cli_call.Options("ws://x", say=("opening_hours",), barge_in=True).plan()
    assert (one.barge_in, one.barge) == (True, None)


def test_a_wrong_option_names_the_choice():
    with pytest.raises(ConfigError, match=r"^--say: there is no 'agent_hello'. Choose of greeting_hello, "):
        cli_call.Options("ws://x", say=("agent_hello",))
