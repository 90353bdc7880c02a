from __future__ import annotations

import subprocess
import sys

import pytest

from livereel.engine import __version__, cli

COMMANDS = ("generate", "info", "eval", "convert", "export", "tune", "bench")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: livereel {command}")
    assert f"examples:\n  livereel {command}" in out


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {command} " in out for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"livereel {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["--loud"], ["info", "x" * 5000]])
def test_mistakes_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("livereel: ") and len(err) < 200
    assert err.count("\n") == 1


def test_options_stay_as_they_are() -> None:
    """Scripts depend on these; a new one is welcome here, a lost one is a breaking change."""
    parser = cli._build_parser()
    (commands,) = parser._subparsers._group_actions  # type: ignore[union-attr]
    assert isinstance(commands.choices, dict)
    options = {
        name: sorted(option for option in command._option_string_actions if option[:2] == "--")
        for name, command in commands.choices.items()
    }
    assert " ".join(options["generate"]) == (
        "--decoder --device --devices --dtype --extend --fps --frames --help --image --last-image "
        "--lora --model --output --provider --script --seconds --seed --sheet --size --steps "
        "--strength --tile --video"
    )
    assert " ".join(options["eval"]) == (
        "--arrive --changes --clips --decoder --device --dtype --follow --help --json --metrics "
        "--minutes --model --objects --plot --prompt --provider --scenes --seconds --seed --streams"
    )
    assert options["info"] == ["--dtype", "--help", "--json", "--size"]
    assert options["convert"] == sorted(
        ["--dtype", "--heads", "--help", "--output", "--recipe", "--text", "--vae"]
    )
    assert " ".join(options["export"]) == (
        "--dtype --format --help --lint --model --out --size --target --window"
    )
    assert options["tune"] == ["--help", "--output", "--rounds"]
    assert options["bench"] == ["--help"]


def test_help_and_mistakes_import_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from livereel.engine.cli import main\n"
        "assert main(['generate', '--help']) == 0\n"
        "assert main(['generate', '', '-o', 'x.mp4']) == 2\n"
        "assert main(['generate', 'a star', '-o', 'x.mp4', '--model', 'none']) == 2\n"
        "heavy = {'torch', 'numpy', 'transformers', 'av', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs(tmp_path: object) -> None:
    command = [sys.executable, "-m", "livereel.engine.cli", "info", "no-such-model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("livereel: unknown model 'no-such-model'")
