"""What is said to who types something that cannot be: one line, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from workers import environment

from conveyor.cli import COMMANDS, main
from conveyor.cli.parsing import Exit

if TYPE_CHECKING:
    from workers import Project


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("wroker", "there is no command 'wroker': did you mean 'worker'?"),
        ("--aap x worker", "there is no option --aap: did you mean --app?"),
        ("worker --cocurrency 2", "there is no option --cocurrency: did you mean --concurrency?"),
        ("worker spare", "'spare' is one argument too many"),
        ("worker -c 0", "concurrency cannot be '0' (option): use a whole number from 1"),
        ("worker -l loud", "use DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        ("worker --log-format xml", "use text or json"),
        ("worker --max-memory-per-child 20X", 'use bytes (209715200 or "200M")'),
        ("worker --grace soon", "use seconds of 0 or more (a number or a timedelta), or inf"),
        ("worker -Q=", "no queue is named: name one, or leave it out"),
        ("beat --queues=", "no queue is named: name one, or leave it out"),
        ("worker -A", "expected one argument"),
        ("call", "required: TASK"),
        ("call add --at tomorrow", "'tomorrow' is not a moment in ISO 8601"),
        ("call add --after=-1", "'-1' is not a number of seconds"),
        ("call add --wait=1e300", "'1e300' is not a number of seconds, up to 1,000 years"),
        ("call add --after 1 --at 2027-01-01T00:00Z", "not allowed with"),
        ("call add --priority 10", "use a whole number from 0 to 9"),
        ("server", "required: ACTION"),
        ("server frob", "choose from"),
        ("demo -c none", "'none' is not a whole number from 1"),
    ],
)
def test_a_mistake_is_answered_with_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == Exit.USAGE
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("conveyor: ")
    assert err.count("\n") == 1
    assert not out


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert not err
    assert out.splitlines()[-1].startswith("  conveyor worker --help")
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_in_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    examples = out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    assert all("conveyor " in line for line in examples)


def test_its_version(project: Project) -> None:
    done = project.conveyor("--version")
    assert (done.code, done.out[:9], done.err) == (0, "conveyor ", "")


def test_who_stops_reading_hears_no_complaint(project: Project) -> None:
    command = [sys.executable, "-m", "conveyor", "-A", "myapp", "status"]
    env = environment(project.env)
    with subprocess.Popen(command, cwd=project.directory, env=env, stdout=-1, stderr=-1) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == Exit.FAILED


@pytest.mark.parametrize("closed", ["1", "2"])
def test_nobody_needs_to_hear_it(project: Project, closed: str) -> None:
    words = [sys.executable, "-m", "conveyor", "-A", "myapp", "status"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}>&-', "sh", *words],
        cwd=project.directory,
        env=environment(project.env),
        stdout=-1,
        stderr=-1,
        check=False,
    )
    assert (done.returncode, done.stderr) == (Exit.DONE, b"")
    assert (b"project" in done.stdout) == (closed == "2")


def test_an_unreachable_server_is_one_line_without_the_password(project: Project) -> None:
    url = "redis://me:secret@127.0.0.1:1/0"
    commands = (["status", "--json"], ["call", "moment"], ["call", "moment", "--wait"])
    started = [project.start("-A", "myapp", *each, CONVEYOR_BROKER=url) for each in commands]
    for process in started:
        with process:
            assert process.wait() == Exit.UNREACHABLE
            assert "cannot reach redis://127.0.0.1:1/0: " in process.output
            assert "secret" not in process.output
            assert process.output.count("\n") == 1
