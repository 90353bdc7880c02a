"""A model to a package, and a package checked against its model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import save_file

import livereel.engine
from livereel.engine.checkpoint.folder import DEMO
from livereel.engine.checkpoint.save import new_folder
from livereel.engine.errors import InputError
from livereel.engine.layers.road import pick_road
from livereel.engine.manifest import Manifest
from livereel.engine.package import NEGATIVE, fingerprint, finish, open_package
from livereel.engine.runners.graphs import DTYPES, text_encoder

from . import lint
from .steps import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from livereel.engine.checkpoint.folder import ModelFolder
    from livereel.engine.manifest import Format, Graph
    from livereel.engine.runners.graphs import StepGraph

    from .steps import Step

WRITERS: dict[Format, str] = {
    "onnx": ".onnx:OnnxWriter",
    "tensorrt": ".onnx:OnnxWriter",
    "tensorrt-rtx": ".tensorrt:RTXWriter",
    "aoti": ".aoti:AotiWriter",
}
"""Format -> the `Writer` that writes its graphs."""
_TOKENIZER = ("*.json", "*.txt", "*.model")


class Writer(Protocol):
    """Writes step modules as files of one format."""

    versions: tuple[str, ...]
    """The libraries whose versions a package notes down."""
    chips: tuple[str, ...]
    """What the graphs run on."""

    def write(self, name: str, step: Step) -> Graph:
        """Write one graph; those of one component come one after another."""

    def end(self, part: str) -> None:
        """All graphs of a component (`Step.weights`) were written."""

    def load(self, graph: Graph) -> StepGraph:
        """A graph that was written, to be run on this machine's CPU."""


@dataclass(frozen=True)
class Checked:
    """What a check found: the largest difference from torch by graph and output, empty where it
    was not run, and what is wrong, in a sentence each."""

    errors: Mapping[tuple[str, str], float]
    wrong: tuple[str, ...]


def plan_export(
    folder: ModelFolder,
    *,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    dtype: str = "float32",
    targets: tuple[str, ...] = (),
) -> Plan:
    """A model at a picture size (its own by default) and a window, in a dtype, for GPUs.

    Raises `InputError` for what cannot be exported.
    """
    if not folder.has_recipe:
        raise InputError(f"{folder.path} makes whole clips; only models that stream are exported")
    stream = folder.stream
    if size is not None:
        stream = replace(stream, width=size[0], height=size[1])
    if window is not None:
        stream = replace(stream, window=window)
    if "transformer_2" in folder.classes:
        raise InputError(f"{folder.path} has two DiTs, of which streams know one; it makes clips")
    plan = Plan(folder, stream, DTYPES[dtype], targets)
    if plan.latent.past == 0:
        raise InputError(
            f"window is {stream.window}; an exported chunk of {stream.chunk_latents} latent frames "
            f"must see earlier ones, so it must be larger than that"
        )
    return plan


def write_package(
    plan: Plan,
    out: str | Path,
    format: Format,
    *,
    tell: Callable[[str], None] = lambda graph: None,
) -> Checked:
    """Export a model into the new folder `out`, check it, and give what the check found.

    `tell` is called with each graph's name before it is written. Nothing is left behind when the
    check finds a mistake. Raises `InputError` for a folder that exists or a mistake found, and
    `ResourceError` where a library is missing.
    """
    with new_folder(out) as draft:
        writer = _writer(format, draft, plan.targets)
        plan = _on_road(plan, format, writer.chips)
        graphs: dict[str, Graph] = {}
        found: dict[tuple[str, str], float] = {}

        def write(name: str, step: Step) -> Graph:
            tell(name)
            return writer.write(name, step)

        for part, steps in plan.parts():
            made = {name: write(name, step) for name, step in steps.items()}
            writer.end(part)
            found |= _compare(plan, part, steps, made, writer)
            graphs |= made
            del steps  # and with them the part's weights
        _copy_tokenizer(plan.folder.path / "tokenizer", draft / "tokenizer")
        checked = _judge(draft, format, graphs, found)
        if checked.wrong:
            raise InputError(f"the export failed its check: {checked.wrong[0]}")
        manifest = _describe(plan, format, writer, graphs)
        if format == "aoti" and plan.stream.guidance_scale > 1:
            _write_negative(draft, manifest, writer.load(graphs["text_encode"]))
        finish(draft, manifest)
    return checked


def check_package(plan: Plan, path: str | Path) -> Checked:
    """Check a package against the model that it was exported from.

    Raises `CheckpointError` for a damaged package, `InputError` for one of another model.
    """
    package = open_package(path)
    manifest = package.manifest
    if manifest.fingerprint != fingerprint(plan.folder.path):
        raise InputError(f"{path} was exported from another model than {plan.folder.path}")
    plan = replace(plan, stream=manifest.stream, dtype=DTYPES[manifest.dtype])
    compiled = manifest.chips if manifest.format == "aoti" and manifest.on_gpu else ()
    writer = _writer(manifest.format, package.path, compiled)
    plan = _on_road(plan, manifest.format, writer.chips)
    found: dict[tuple[str, str], float] = {}
    for part, steps in plan.parts():
        graphs = {name: manifest.graphs[name] for name in steps}
        found |= _compare(plan, part, steps, graphs, writer)
    return _judge(package.path, manifest.format, manifest.graphs, found)


def _on_road(plan: Plan, format: Format, chips: tuple[str, ...]) -> Plan:
    """What is compiled for GPUs is of Triton's kernels where streams there are."""
    if format != "aoti" or not any(chip.startswith("sm_") for chip in chips):
        return plan
    return replace(plan, road=pick_road("auto", torch.device("cuda"), plan.dtype))


def _compare(
    plan: Plan, part: str, steps: Mapping[str, Step], graphs: Mapping[str, Graph], writer: Writer
) -> dict[tuple[str, str], float]:
    """Differences from torch; none where this machine's CPU cannot run the dtype."""
    if plan.dtype != torch.float32:
        return {}
    loaded = {name: writer.load(graph) for name, graph in graphs.items()}
    return lint.errors(plan, part, steps, loaded)


def _judge(
    folder: Path, format: Format, graphs: Mapping[str, Graph], found: dict[tuple[str, str], float]
) -> Checked:
    wrong = [
        f"{name}'s {output} differs from torch's by {error:.2g}; at most {lint.TOLERANCE:g} is let "
        f"pass"
        for (name, output), error in found.items()
        if not error <= lint.TOLERANCE
    ]
    if format != "aoti":
        wrong += [
            f"{name} {mistake}"
            for name, graph in graphs.items()
            for mistake in lint.structure(folder, graph)
        ]
    return Checked(errors=found, wrong=tuple(wrong))


def _describe(plan: Plan, format: Format, writer: Writer, graphs: dict[str, Graph]) -> Manifest:
    folder = plan.folder
    versions = {"livereel": livereel.engine.__version__}
    return Manifest(
        format=format,
        chips=writer.chips,
        name="demo" if folder.path == DEMO else folder.path.name,
        family=folder.classes["transformer"],
        fingerprint=fingerprint(folder.path),
        versions=versions | {name: version(name) for name in writer.versions},
        dtype=str(plan.dtype).removeprefix("torch."),
        stream=plan.stream,
        latent=plan.latent,
        graphs=graphs,
    )


def _writer(format: Format, folder: Path, targets: tuple[str, ...] = ()) -> Writer:
    module, _, name = WRITERS[format].partition(":")
    options = {"targets": targets} if targets else {}
    writer: Writer = getattr(import_module(module, __package__), name)(folder, **options)
    return writer


def _write_negative(folder: Path, manifest: Manifest, graph: StepGraph) -> None:
    """The embedding that guidance moves away from, for runtimes that read no text."""
    encoder = text_encoder(folder, manifest, graph, torch.device("cpu"))
    text = encoder.encode([""], manifest.stream.max_sequence_length)[0]
    save_file({"text": text.float().contiguous()}, folder / NEGATIVE)


def _copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir()
    for pattern in _TOKENIZER:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
