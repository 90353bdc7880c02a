"""Whether exported graphs are what they should be: in structure, and in what they compute.

`structure` reads the files of a package; `errors` runs graphs beside the modules that they were
exported from, over several chunks, each with its own state fed back.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from .onnx import OPSET

if TYPE_CHECKING:
    from pathlib import Path

    from livereel.engine.manifest import Graph
    from livereel.engine.runners.graphs import StepGraph

    from .steps import Plan, Step

TOLERANCE = 1e-3
"""The largest difference of an fp32 graph's outputs from torch's that is let pass."""

Tensors: TypeAlias = Mapping[str, Tensor]
_Walk: TypeAlias = Generator[tuple[str, dict[str, Tensor]], Tensors, None]

_CONTROL = ("If", "Loop", "Scan")
_WRONG_TYPES = {11: "double", 14: "complex64", 15: "complex128"}
_INLINE = 1 << 20  # bytes of weights in a graph's own file
_CHUNKS = 3


def structure(folder: Path, graph: Graph) -> list[str]:
    """What is wrong with a graph's file, in a sentence each.

    No control flow, custom or complex ops; opset 20; shapes fixed and as the manifest says; every
    input used, and no output that is an input passed through.
    """
    import onnx

    model = onnx.load(str(folder / graph.file), load_external_data=False)
    try:
        onnx.checker.check_model(str(folder / graph.file))
    except onnx.checker.ValidationError as error:  # weights that are a link, among others
        return [f"is refused by ONNX's checker: {str(error).strip().splitlines()[0]:.200}"]
    found = [
        f"is of opset {entry.version} of {entry.domain or 'ONNX'}; wanted {OPSET} of ONNX"
        for entry in model.opset_import
        if (entry.domain, entry.version) != ("", OPSET)
    ]
    nodes = model.graph.node
    found += [f"has the op {node.op_type} ({node.name})" for node in nodes if _refused(node)]
    weights = model.graph.initializer
    values = [*((x.name, x.data_type) for x in weights)]
    values += [
        (x.name, x.type.tensor_type.elem_type)
        for x in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    ]
    found += [
        f"has the {_WRONG_TYPES[kind]} tensor {name}"
        for name, kind in values
        if kind in _WRONG_TYPES
    ]
    inline = sum(x.ByteSize() for x in weights if not x.external_data)
    if inline > _INLINE:
        found.append(f"holds {inline} bytes of weights that belong in the file beside it")
    used = {name for node in nodes for name in node.input}
    given = [x.name for x in model.graph.input]
    found += [f"never reads its input {name}" for name in given if name not in used]
    made = {name for node in nodes for name in node.output}
    outputs = [x.name for x in model.graph.output]
    found += [f"does not compute its output {name}" for name in outputs if name not in made]
    for wanted, there in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
        shapes = [
            (x.name, tuple(side.dim_value for side in x.type.tensor_type.shape.dim)) for x in there
        ]
        if shapes != [(x.name, x.shape) for x in wanted]:
            found.append(f"has inputs or outputs {shapes}, not those of the manifest")
    return found


def _refused(node: Any) -> bool:
    return node.op_type in _CONTROL or node.domain not in ("", "ai.onnx")


@torch.inference_mode()
def errors(
    plan: Plan, part: str, steps: Mapping[str, Step], graphs: Mapping[str, StepGraph]
) -> dict[tuple[str, str], float]:
    """The largest difference of each output of each graph of a part (`Step.weights`) from torch's,
    by graph and output."""
    worst: dict[tuple[str, str], float] = {}
    walks = [_WALKS[part](plan, steps) for _ in range(2)]
    calls = [next(walk) for walk in walks]
    while True:
        (name, ours), (_, theirs) = calls
        step = steps[name]
        result = step.module(*(ours[given] for given in step.inputs))
        results = (result,) if isinstance(result, Tensor) else result
        wanted = dict(zip(step.outputs, results, strict=True))
        found = graphs[name]({given: theirs[given].contiguous() for given in step.inputs})
        for output, x in wanted.items():
            difference = float((x.float() - found[output].float()).abs().max())
            key = (name, output)
            # A NaN must not be lost in a maximum.
            worst[key] = (
                difference if difference != difference else max(worst.get(key, 0.0), difference)
            )
        try:
            calls = [walk.send(made) for walk, made in zip(walks, (wanted, found), strict=True)]
        except StopIteration:
            return worst


def _text(plan: Plan, steps: Mapping[str, Step]) -> _Walk:
    """Prompts of several lengths."""
    inputs, random = steps["text_encode"].inputs, torch.Generator().manual_seed(0)
    vocabulary = cast(Any, steps["text_encode"].module).model.config.vocab_size
    length = inputs["tokens"].shape[1]
    for words in (1, length // 2, length):
        tokens = torch.randint(0, vocabulary, (1, length), generator=random)
        mask = (torch.arange(length) < words).long().unsqueeze(0)
        made = {"tokens": tokens * mask, "mask": mask}
        yield "text_encode", {name: made[name] for name in inputs}


def _dit(plan: Plan, steps: Mapping[str, Step]) -> _Walk:
    """A prompt and the chunks of a stream under it, from the first one until the past is full."""
    return _cached(plan, steps) if "text_kv" in steps else _windowed(plan, steps)


def _cached(plan: Plan, steps: Mapping[str, Step]) -> _Walk:
    random = torch.Generator().manual_seed(0)
    text = _noise(steps["text_kv"].inputs["text"], random)
    made = yield "text_kv", {"text": text}
    prompt = {"text_k": made["text_k"], "text_v": made["text_v"]}

    first = steps["denoise_first"].inputs
    noisy = {"latent": _noise(first["latent"], random), "timestep": first["timestep"]}
    made = yield "denoise_first", {**noisy, **prompt}

    inputs, room = steps["denoise"].inputs, plan.latent.past
    past = {name: inputs[name].clone() for name in ("past_k", "past_v")}
    total, chunk = 0, inputs["latent"].shape[2]
    for i in range(_CHUNKS):
        for k in range(made["k"].shape[1]):
            for name in ("k", "v"):
                past[f"past_{name}"][:, total % room] = made[name][:, k]
            total += 1
        seen = min(total, room)
        positions = torch.full((room + chunk,), -1)
        for place in range(seen):
            positions[(total - seen + place) % room] = place
        positions[room:] = torch.arange(seen, seen + chunk)
        noisy = {"latent": _noise(inputs["latent"], random), "timestep": _time(plan, i)}
        made = yield "denoise", {**noisy, **prompt, **past, "positions": positions}


def _windowed(plan: Plan, steps: Mapping[str, Step]) -> _Walk:
    random = torch.Generator().manual_seed(0)
    name, given = "denoise_first", steps["denoise_first"].inputs
    text = _noise(given["text"], random)
    x, past = _noise(given["latent"], random), steps["denoise"].inputs["past"]
    made = yield name, {"latent": x, "timestep": given["timestep"], "text": text}
    inputs, room, seen = steps["denoise"].inputs, past.shape[2], 0
    for i in range(_CHUNKS):
        x[:, : made["flow"].shape[1]] -= made["flow"]
        past = torch.cat([past, x], dim=2)[:, :, -room:]
        seen = min(room, seen + x.shape[2])
        seen -= (seen + inputs["latent"].shape[2]) % plan.latent.temporal_patch
        x = _noise(inputs["latent"], random)
        missing = torch.full((room - seen,), -1)
        made = yield "denoise", {
            "latent": x, "timestep": _time(plan, i), "text": text, "past": past,
            "positions": torch.cat([missing, torch.arange(seen + x.shape[2])]),
        }  # fmt: skip


def _time(plan: Plan, i: int) -> Tensor:
    times = plan.stream.timesteps
    return torch.tensor([times[i % len(times)]])


def _vae(plan: Plan, steps: Mapping[str, Step]) -> _Walk:
    """Streams decoded, and encoded: from each of the first calls on, and once by all later ones."""
    random = torch.Generator().manual_seed(0)
    for kind in ("vae_decode", "vae_encode"):
        later = [name for name in steps if name.startswith(kind) and len(steps[name].inputs) > 1]
        plain = [kind] * _CHUNKS
        for first in (name for name in steps if name.startswith(f"{kind}_first")):
            calls = [first, *later[:-1], *plain] if first == f"{kind}_first" else [first, kind]
            state: dict[str, Tensor] = {}
            for name in calls:
                step = steps[name]
                given = next(iter(step.inputs))
                made = yield name, {given: _noise(step.inputs[given], random).clamp(-2, 2), **state}
                state = {step.state[output]: made[output] for output in step.state}


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random).to(like.dtype)


_WALKS = {"text_encoder": _text, "transformer": _dit, "vae": _vae}
