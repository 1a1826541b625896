from __future__ import annotations

import io
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from premoe_local.cli import LazyGroup, command
from premoe_local.console import human_bytes, parse_bytes, print_json, print_table

from premoe_runtime.formats.errors import Conflict, Exhausted, InvalidInput, NotFound

COMMANDS = [
    "pack",
    "size",
    "profile",
    "patterns",
    "eval",
    "doctor",
    "store",
    "gc",
    "export",
    "import-mask",
    "up",
    "generate",
    "bench",
    "demo",
]


def test_help_lists_every_command_and_version_is_told() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output
    assert CliRunner().invoke(command, ["--version"]).output.startswith("premoe 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(command, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_help_imports_no_torch() -> None:
    script = (
        "import sys, contextlib\n"
        "from premoe_local.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "with contextlib.suppress(SystemExit): main(['up', '--help'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def run_raising(error: BaseException) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that raises."""

    @click.command()
    def broken() -> None:
        raise error

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            return broken

    result = CliRunner().invoke(Group("premoe"), ["broken"])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("budget is\nwrong"), 2),
        (NotFound("budget is wrong"), 3),
        (Conflict("budget is wrong"), 4),
        (Exhausted("budget is wrong"), 7),
    ],
)
def test_known_errors_are_one_line_and_an_exit_code(error: Exception, code: int) -> None:
    assert run_raising(error) == (code, "", "error: budget is wrong\n")


def test_a_missing_file_is_one_line_too(tmp_path: object) -> None:
    missing = f"{tmp_path}/nope"
    assert run_raising(FileNotFoundError(2, "No such file", missing)) == (2, "", f"error: {missing}: No such file\n")


def test_a_full_disk_is_one_line() -> None:
    assert run_raising(OSError(28, "No space left on device")) == (7, "", "error: No space left on device\n")


@pytest.mark.parametrize("arguments", ["--help", "size --help", "pack verify"])
def test_an_output_that_takes_nothing_leaves_no_traceback(arguments: str) -> None:
    script = "from premoe_local.entry import main\nmain()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert (done.stderr[:7], done.stderr.count("\n")) == ("error: ", 1)


def test_ctrl_c_is_130() -> None:
    assert run_raising(KeyboardInterrupt())[0] == 130


def test_bugs_are_not_hidden() -> None:
    result = CliRunner().invoke(command, ["nope"])
    assert (result.exit_code, "No such command" in result.stderr) == (2, True)
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    code, _, stderr = run_raising(ZeroDivisionError("a bug"))
    assert (code, stderr) == (1, "")


@pytest.mark.parametrize(
    ("text", "count"),
    [("512", 512), ("24GiB", 24 * 2**30), ("1.5 GB", 1_500_000_000), ("3k", 3072), ("7B", 7)],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "12 parsecs", "one"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_json_and_tables_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ü": 1.5})
    print_table("Things", ("name", "n"), [("[a]", 1), ("b", None)])
    out, err = capsys.readouterr()
    assert out.startswith('{\n  "ü": 1.5\n}\n')
    assert "[a]" in out  # not taken for markup
    assert err == ""
    with pytest.raises(ValueError):
        print_json(float("nan"))


def shown(width: int, monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...], row: tuple[object, ...]) -> str:
    """A table on a terminal of this width."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("Things", columns, [row])
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_cut_no_word(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    row = ("summarise", "a" * 64, 12, "several words that may be wrapped")
    text = shown(width, monkeypatch, ("task", "profile", "prompts", "note"), row)
    assert all(word in text for word in ("summarise", "a" * 64, "12", "several", "wrapped", "prompts"))


def test_a_number_stays_beside_its_unit_and_empty_columns_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("budget", "slots a layer", "experts", "in all", "main memory", "fits", "longest context", "why not")
    text = shown(80, monkeypatch, columns, ("4/16", "18", "102.5 MiB", "516.1 MiB", "922.0 MiB", "yes", 1024, ""))
    assert "102.5 MiB" in text
    assert "922.0 MiB" in text
    assert "why" not in text
    assert max(map(len, click.unstyle(text).splitlines())) <= 80


def test_the_options_of_a_default_subcommand_are_shown() -> None:
    for name, options in {"pack": ("--to", "--json", "verify"), "profile": ("--task", "--json", "list", "rm")}.items():
        text = CliRunner().invoke(command, [name, "--help"]).stdout
        assert all(option in text for option in options), text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["size"], "Missing argument 'MODEL'"),
        (["size", "x", "--memory", "1GiB", "--nope"], "No such option"),
        (["profile", "x", "--task", "a", "--data", "b", "--limit", "0"], "0 is not in the range"),
        (["patterns", "plot", "x"], "Missing option '--out'"),
        (["patterns", "nope"], "No such command 'nope'"),
        (["pack", "x"], "Missing option '--to'"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_the_help(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert what in result.stderr
    assert result.stderr.endswith("--help`.\n")
    assert result.stderr.count("\n") == 1
