"""`livereel info`: what a model is, what it needs, and what this machine has to run it."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from .. import __version__, machine, memory, registry
from ..errors import InputError
from ..package import read_manifest
from . import arguments

if TYPE_CHECKING:
    from ..checkpoint.folder import ModelFolder

SUMMARY = "show a model's config and memory, and what this machine offers"
EXAMPLES = """\
examples:
  livereel info
  livereel info path/to/Wan2.1-T2V-1.3B-Diffusers --size 832x480 --dtype bfloat16
  livereel info --dtype fp8        (loads the model and measures what fp8 costs it)
  livereel info --json
"""
_ROADS = ("torch", "triton", "onnxruntime", "tensorrt")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", nargs="?", default="demo", metavar="MODEL", help="default: demo")
    parser.add_argument(
        "--size", type=arguments.size, metavar="WIDTHxHEIGHT", help="for the memory needed"
    )
    parser.add_argument(
        "--dtype",
        choices=arguments.LOADED,
        default="auto",
        help="of weights and state (default: what this machine runs best); fp8 also measures how "
        "far that is from bfloat16",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Gather and print. Returns the exit code."""
    folder = arguments.find_model(options.model)
    size = arguments.fit_size(options.size, folder)
    device, dtype = arguments.resolve("auto", options.dtype)
    fp8 = options.dtype == "fp8"
    if fp8 and (folder.exported or not folder.has_recipe):
        raise InputError("--dtype fp8 is measured on a model folder that streams")
    facts = {
        "livereel": __version__,
        "model": {
            **_describe_model(options.model, folder, size, dtype),
            "roads": _describe_roads(folder, device, dtype, fp8),
            **({"fp8": _describe_fp8(folder, device)} if fp8 else {}),
        },
        "machine": _describe_machine(),
    }
    print(json.dumps(facts, indent=2) if options.json else _format(facts))
    return 0


def _describe_model(
    name: str, folder: ModelFolder, size: tuple[int, int], dtype: str
) -> dict[str, Any]:
    width, height = size
    need = memory.estimate(folder, width=width, height=height, dtype=dtype)
    return {
        "name": name,
        "folder": str(folder.path),
        "parameters": memory.count_parameters(folder),
        "size_step": memory.size_step(folder),
        "streams": folder.has_recipe,
        "windowed": _family(folder) in registry.WINDOWED,
        "stream": folder.stream.to_dict(),
        "memory": {
            "width": width,
            "height": height,
            "dtype": read_manifest(folder.path).dtype if folder.exported else dtype,
            **asdict(need),
            "total": need.total,
        },
    }


def _family(folder: ModelFolder) -> str | None:
    """The class of the DiT."""
    if folder.exported:
        return read_manifest(folder.path).family
    return folder.classes.get("transformer")


def _describe_roads(folder: ModelFolder, device: str, dtype: str, fp8: bool) -> dict[str, str]:
    """Which road each operation of the model takes on this machine."""
    if folder.exported:
        return {"graphs": read_manifest(folder.path).format}
    from ..layers.road import pick_road
    from ..runners.roads import roads_of
    from ..runners.torch import pick_device, pick_dtype

    picked = pick_device(device)
    computed = pick_dtype(dtype, picked)
    return roads_of(folder, pick_road("auto", picked, computed), computed, fp8=fp8)


def _describe_fp8(folder: ModelFolder, device: str) -> dict[str, Any]:
    """How far the model in fp8 is from itself in bfloat16, each as |difference| / |bfloat16|."""
    import torch

    from ..runners.fp8 import fp8_report

    report = fp8_report(folder, torch.device(device))
    return {"latents": report.whole, "layers": report.layers}


def _describe_machine() -> dict[str, Any]:
    return {
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "cpu": machine.cpu_name(),
        "cpu_features": machine.cpu_features(),
        "cores": machine.cores(),
        "memory_free": machine.available_ram(),
        "gpus": _gpus(),
        "roads": {road: _version(road) for road in _ROADS},
        "native": _has_native_core(),
    }


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        gpus.append({"name": torch.cuda.get_device_name(i), "free": free, "total": total})
    return gpus


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_native_core() -> bool:
    try:
        import_module("livereel.engine.native")
    except ImportError:
        return False
    return True


def _format(facts: dict[str, Any]) -> str:
    """The facts for people."""
    model, machine = facts["model"], facts["machine"]
    stream, need = model["stream"], model["memory"]
    show = memory.gigabytes
    total = sum(model["parameters"].values())
    parts = ", ".join(f"{name} {memory.millions(n)}" for name, n in model["parameters"].items())
    free = machine["memory_free"]
    gpus = [
        f"{gpu['name']} ({show(gpu['free'])} free of {show(gpu['total'])})"
        for gpu in machine["gpus"]
    ]
    rows = [
        ("model", f"{model['name']}  ({model['folder']})"),
        ("parameters", f"{memory.millions(total)}: {parts}"),
        (
            "picture",
            f"{stream['width']}x{stream['height']} at {stream['fps']:g} fps; "
            f"sizes are multiples of {model['size_step']}",
        ),
        *_format_stream(model),
        (
            "memory",
            f"{show(need['total'])} at {need['width']}x{need['height']}, dtype "
            f"{need['dtype']}: weights {show(need['weights'])}, KV ring "
            f"{show(need['kv_ring'])}, conv caches {show(need['conv_caches'])}, "
            f"activations {show(need['activations'])}, runtime {show(need['runtime'])}",
        ),
        *_format_fp8(model),
        ("operations", ", ".join(f"{op} {road}" for op, road in model["roads"].items())),
        (
            "machine",
            f"{machine['cpu']}, {machine['cores']} cores"
            f" ({', '.join(machine['cpu_features']) or 'no vector extensions known'}), "
            f"{'unknown' if free is None else show(free)} of memory free",
        ),
        ("gpu", "; ".join(gpus) or "none"),
        (
            "roads",
            ", ".join(
                f"{road} {version or 'not installed'}" for road, version in machine["roads"].items()
            ),
        ),
        ("native core", "built" if machine["native"] else "not built"),
        ("livereel", f"{facts['livereel']} on Python {machine['python']}, {machine['system']}"),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _format_fp8(model: dict[str, Any]) -> list[tuple[str, str]]:
    """What fp8 costs, where it was measured."""
    if "fp8" not in model:
        return []
    layers = model["fp8"]["layers"]
    worst = ", ".join(f"{name} {error:.1%}" for name, error in list(layers.items())[:3])
    return [
        (
            "fp8",
            f"{len(layers)} layers; latents of a first chunk {model['fp8']['latents']:.1%} from "
            f"bfloat16's; the worst layers: {worst or 'none'}",
        )
    ]


def _format_stream(model: dict[str, Any]) -> list[tuple[str, str]]:
    """How the model goes through time."""
    stream = model["stream"]
    if not model["streams"]:
        return [("clips", "whole ones only: the folder has no livereel.json")]
    timesteps = ", ".join(f"{t:g}" for t in stream["timesteps"])
    anchors = ""
    if stream["anchors"]:
        anchors = f", anchors {stream['anchors']} (every {stream['anchor_every']})"
    cache = f"cache pass at {stream['context_noise']:g}"
    if model["windowed"]:
        cache = "each over its window's latents, without a KV ring"
    return [
        (
            "chunk",
            f"{stream['chunk_latents']} latent frames, the first {stream['first_chunk_latents']}; "
            f"window {stream['window']}, sinks {stream['sinks']}{anchors}",
        ),
        (
            "passes",
            f"{len(stream['timesteps'])} at {timesteps}, {stream['solver']}; {cache}",
        ),
    ]
