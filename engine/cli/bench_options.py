"""Options that the benchmarks share, and where their results go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import arguments

if TYPE_CHECKING:
    from livereel.benchmarks.report import Section

PACKAGES = ("livereel", "torch", "triton", "diffusers", "transformers", "numpy")
NONE = "none"


def add_command(
    whats: Any, name: str, summary: str, epilog: str, job: Any
) -> argparse.ArgumentParser:
    """A thing to bench, which `job` does."""
    parser: argparse.ArgumentParser = whats.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(bench=job)
    return parser


def add_subject(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--random-weights`, `--device`, `--dtype` and `--decoder`."""
    add = parser.add_argument
    add(
        "--model",
        default="demo",
        help='"demo", a model folder, or with --random-weights wan2.1-1.3b and the like',
    )
    add(
        "--random-weights",
        action="store_true",
        help="draw a full-size model's weights on the device; speed does not depend on them",
    )
    add("--device", type=arguments.device, default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", choices=arguments.LOADED, default="auto", help="of weights and state")
    add("--decoder", choices=("full", "tiny"), default="full", help="default: full, the VAE's own")


def add_rounds(parser: argparse.ArgumentParser, *, runs: int, of: str) -> None:
    """`--runs`, so many by default, and `--warmup`."""
    add = parser.add_argument
    add("--runs", type=arguments.whole(1, 10_000), default=runs, help=f"{of} (default: {runs})")
    add("--warmup", type=arguments.whole(0, 1000), default=1, help="more before these (default: 1)")


def add_baselines(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """`--baseline`, which may be repeated: one of `names`, or `NONE`."""
    parser.add_argument(
        "--baseline",
        choices=(*names, NONE),
        action="append",
        metavar="NAME",
        help=f"who takes turns with ours: {', '.join(names)} or {NONE}; may be repeated",
    )


def baselines(options: argparse.Namespace) -> list[str] | None:
    """Those asked for, each once; None where `--baseline` was not given. Raises `InputError` for
    `NONE` among others."""
    asked: list[str] | None = options.baseline
    if asked is None:
        return None
    if NONE in asked and len(asked) > 1:
        raise InputError(f"--baseline {NONE} goes with no other")
    return [name for name in dict.fromkeys(asked) if name != NONE]


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", metavar="FILE", help="also write every figure as JSON")


def add_plot(parser: argparse.ArgumentParser) -> None:
    """`--plot`."""
    parser.add_argument("--plot", metavar="FILE", help="also draw them, as one HTML page")


def json_path(options: argparse.Namespace) -> Path | None:
    """Where `--json` goes, which can be written to."""
    return _path(options.json)


def plot_path(options: argparse.Namespace) -> Path | None:
    """Where `--plot` goes, which can be written to."""
    return _path(options.plot)


def check_outputs(options: argparse.Namespace) -> None:
    """Raise `InputError` now for a place that `--json` or `--plot` cannot write to."""
    json_path(options)
    plot_path(options)


def _path(text: str | None) -> Path | None:
    if text is None:
        return None
    path = Path(text)
    arguments.check_file(path)
    return path


def finish(options: argparse.Namespace, sections: dict[str, Section]) -> int:
    """Write what `--json` and `--plot` ask for. Returns the exit code: 1 when a goal was missed."""
    import torch

    from livereel.benchmarks import pages, report
    from livereel.benchmarks.compare import Result
    from livereel.benchmarks.harness import Environment

    environment = Environment.capture(
        threads=torch.get_num_threads(),
        packages=PACKAGES,
        repo=Path(report.__file__).parents[1],
    )
    print(f"\n{environment}")
    if (path := json_path(options)) is not None:
        replace(path, report.to_json(environment, sections) + "\n")
    if (path := plot_path(options)) is not None:
        result = Result(environment=environment, sections=sections)
        replace(path, pages.html({path.stem: result}, []))
    return 0 if all(goal.met for section in sections.values() for goal in section.goals) else 1


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
