"""The C++ runtime (csrc/runtime): built, compared with Python's runner, installed and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from livereel.engine.checkpoint.folder import DEMO, open_folder
from livereel.engine.cli import main
from livereel.engine.engine import Engine
from livereel.engine.sampling.track import Position
from livereel.export.package import plan_export, write_package

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

ROOT = Path(__file__).parents[3]
TOOLS = Path(sys.executable).parent
TORCH = Path(torch.__file__).parent
CHUNKS, SEED = 50, 7
# What is told of where the object shall be when a chunk has left, as in test_stream.cpp.
TRACKS: dict[int, tuple[Position, ...]] = {
    4: ((0.25, 0.7),), 6: ((0.9, 0.1),), 39: (),
    9: ((0.9, 0.2), (0.95, 0.3), None, (0.05, 0.4), (0.1, 0.5)),
}  # fmt: skip
TARGETS = ("livereel_runtime", "livereel_run", "livereel_example", "test_stream", "test_refusals")


def call(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )  # type: ignore[call-overload,no-any-return]


def done(*command: str | Path, **options: object) -> str:
    """What a command that must succeed prints."""
    ran = call(*command, **options)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout


def build(folder: Path, case: Path, *options: str, targets: Sequence[str] = TARGETS) -> Path:
    """Configure and build the runtime and its tests."""
    done(
        TOOLS / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}",
        "-DLIVEREEL_PYTHON=OFF", "-DLIVEREEL_RUNTIME=ON", "-DLIVEREEL_TESTS=ON",
        f"-DLIVEREEL_TORCH={TORCH}", f"-DLIVEREEL_TEST_PACKAGE={case}", *options, "-S", ROOT,
        "-B", folder,
    )  # fmt: skip
    done(TOOLS / "cmake", "--build", folder, "--target", *targets)
    return folder


def make_case(package: Path, folder: Path, prompts: Sequence[str], chunks: int = CHUNKS) -> Path:
    """A package, two embeddings, and what Python streams: the prompt changes in the middle; where
    the model follows control, the object is led and let go."""
    (folder / "package").symlink_to(package)
    for name, prompt in zip(("first", "second"), prompts, strict=True):
        out = folder / f"{name}.safetensors"
        assert main(["embed", prompt, "--model", str(package), "-o", str(out)]) == 0
    frames = []
    engine = Engine.load(package, device="cpu")
    tracks = TRACKS if engine.config.control_channels else {}
    with engine.open(prompts[0], seed=SEED) as session:
        for chunk in session:
            frames.append(chunk.frames)
            if chunk.index in tracks:
                session.update(control=tracks[chunk.index])
            if chunk.index == chunks // 2 - 1:
                session.update(prompt=prompts[1])
            if chunk.index == chunks - 1:
                break
    np.concatenate(frames).tofile(folder / "frames.rgb")
    return folder


@pytest.fixture(scope="session")
def case(aoti_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the tiny model."""
    folder = tmp_path_factory.mktemp("runtime")
    return make_case(aoti_package, folder, ("a red ball", "a blue ball moving left"))


@pytest.fixture(scope="session")
def built(case: Path) -> Path:
    """The runtime's build folder."""
    return build(ROOT / "build" / "runtime", case)


@pytest.fixture
def environment() -> dict[str, str]:
    """Nothing of Python's, no PATH, and as many threads as here, since bits depend on them."""
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def ctest(folder: Path, environment: dict[str, str]) -> None:
    names = "^(stream|refusals|example)$"
    command = (TOOLS / "ctest", "--test-dir", folder, "--output-on-failure", "-R", names)
    printed = done(*command, env={**os.environ, **environment})
    assert "out of 3" in printed


def test_streams_bitwise_as_python_and_refuses_with_a_sentence(
    built: Path, environment: dict[str, str]
) -> None:
    ctest(built, environment)


@pytest.mark.slow
def test_demo_streams_bitwise_as_python(
    built: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    package = tmp_path / "exported"
    write_package(plan_export(open_folder(DEMO)), package, "aoti")
    moves = ("a red circle moving right", "a large blue star moving left")
    case = make_case(package, tmp_path, [f"{move} on a black background" for move in moves])
    done(built / "csrc" / "runtime" / "test_stream", case, env=environment)


def with_recipe(package: Path, folder: Path, **values: object) -> Path:
    """A copy of a package with other values in its recipe."""
    copy = shutil.copytree(package, folder / "exported")
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["stream"].update(values)
    file.write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_solves_for_velocity_bitwise_as_python(
    built: Path, aoti_package: Path, tmp_path: Path, environment: dict[str, str], solver: str
) -> None:
    times = [999.0, 740.5, 499.25]
    package = with_recipe(aoti_package, tmp_path, solver=solver, shift=3.0, timesteps=times)
    case = make_case(package, tmp_path, ("a red ball", "a blue ball"), chunks=4)
    done(built / "csrc" / "runtime" / "test_stream", case, "4", env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_windows_of_latents_stream_bitwise_as_python(
    built: Path, windowed_package: Path, tmp_path: Path, environment: dict[str, str], solver: str
) -> None:
    package = with_recipe(windowed_package, tmp_path, solver=solver)
    case = make_case(package, tmp_path, ("a red ball moving left", "a blue ball"))
    done(built / "csrc" / "runtime" / "test_stream", case, env=environment)


@pytest.mark.slow
def test_half_precision_streams_bitwise_as_python(
    built: Path, guided_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    package = tmp_path / "exported"
    write_package(plan_export(open_folder(guided_folder), dtype="bfloat16"), package, "aoti")
    case = make_case(package, tmp_path, ("a red ball", "a blue ball"), chunks=8)
    done(built / "csrc" / "runtime" / "test_stream", case, "8", env=environment)


@pytest.mark.slow
def test_sanitized(case: Path, environment: dict[str, str]) -> None:
    folder = build(
        ROOT / "build" / "runtime-sanitize", case, "-DLIVEREEL_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    )  # fmt: skip
    # What libtorch allocates once and never frees is not ours.
    ctest(folder, {**environment, "ASAN_OPTIONS": "detect_leaks=0"})


@pytest.mark.slow
def test_readers_hold_against_a_fuzzer(case: Path, tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("needs clang++ and its libFuzzer")
    folder, corpus = ROOT / "build" / "fuzz", tmp_path / "corpus"
    done(
        TOOLS / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}",
        "-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DLIVEREEL_FUZZ=ON",
        "-DLIVEREEL_PYTHON=OFF", "-DLIVEREEL_SANITIZE=address,undefined", "-S", ROOT, "-B", folder,
    )  # fmt: skip
    done(TOOLS / "cmake", "--build", folder, "--target", "fuzz_readers")
    corpus.mkdir()
    for file in ("package/manifest.json", "first.safetensors"):
        shutil.copy(case / file, corpus)
    program = folder / "csrc" / "runtime" / "fuzz_readers"
    done(
        program, "-max_total_time=60", "-max_len=65536", "-rss_limit_mb=2048", corpus, cwd=tmp_path
    )


def test_program_needs_no_python(
    built: Path, case: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    program = built / "livereel-run"
    assert "python" not in done("ldd", program).replace(str(TORCH), "").lower()
    out = tmp_path / "out.y4m"
    asked = (
        program, case / "package", "--prompt-embeds", case / "first.safetensors", "--seed",
        str(SEED), "--seconds", "1.5",
    )  # fmt: skip
    done(*asked, "-o", out, env=environment)
    header, *frames = out.read_bytes().split(b"FRAME\n")
    assert header.startswith(b"YUV4MPEG2 W48 H32 F16000:1000 ")
    assert [len(frame) for frame in frames] == [3 * 48 * 32] * 24
    red, green, blue = np.fromfile(case / "frames.rgb", np.uint8, 48 * 32 * 3).reshape(-1, 3).T
    light = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    assert np.abs(np.frombuffer(frames[0], np.uint8)[: 48 * 32] - light).max() <= 0.51

    for more, told in (
        (["-o", "/dev/full"], "No space left"),
        (["-o", str(tmp_path / "no" / "out.y4m")], "cannot be written"),
        (["-o", str(out), "--seconds", "0"], "--seconds"),
        (["-o", str(out), "--frames", "3"], "--frames"),
        ([], "-o"),
    ):
        ran = call(*asked, *more, env=environment)
        assert ran.returncode == 2
        assert told in ran.stderr
        assert ran.stderr.count("\n") == 1


def test_installed_and_found_by_cmake(
    built: Path, case: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    prefix = tmp_path / "prefix"
    done(TOOLS / "cmake", "--install", built, "--prefix", prefix, "--component", "runtime")
    done(
        TOOLS / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}",
        f"-DCMAKE_PREFIX_PATH={prefix}", "-S", ROOT / "csrc" / "examples", "-B", tmp_path / "build",
    )  # fmt: skip
    done(TOOLS / "cmake", "--build", tmp_path / "build")
    out = tmp_path / "out.rgb"
    example = (tmp_path / "build" / "livereel_example", case / "package")
    prompts = (case / "first.safetensors", case / "second.safetensors")
    done(*example, *prompts, out, env=environment)
    ours, theirs = np.fromfile(out, np.uint8), np.fromfile(case / "frames.rgb", np.uint8)
    chunks = [6 * 48 * 32 * 3] * 9
    assert len(ours) == 48 * 32 * 3 + sum(chunks)
    same = 48 * 32 * 3 + sum(chunks[:4])  # then Python's object is led
    np.testing.assert_array_equal(ours[:same], theirs[:same])
    assert call(*example, "nowhere", prompts[1], out, env=environment).returncode == 1
