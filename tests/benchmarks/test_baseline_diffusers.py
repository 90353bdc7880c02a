"""diffusers' pipelines over the subject's weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from livereel.benchmarks import bench_vae
from livereel.benchmarks.baseline_diffusers import Diffusers, fastest, leave_control_out, part
from livereel.benchmarks.bench_vae import DifferError
from livereel.benchmarks.ceilings import Ceilings, ceilings
from livereel.benchmarks.subject import Subject
from livereel.engine.errors import InputError

Small = Callable[..., Subject]
TOP = Ceilings(1e12, 1e10)


@pytest.mark.parametrize(
    "name", ["wan2.1-1.3b", pytest.param("cogvideox-2b", marks=pytest.mark.slow)]
)
def test_a_clip_is_as_long_as_the_window(name: str, small: Small) -> None:
    found = small(name).at(steps=1, window=3 if name.startswith("cog") else 2)
    clip = Diffusers(found)
    clip.open()
    assert clip.turn() == 1 + 4 * (found.stream.window - 1)
    assert clip.contents.passes == (2 if found.guided else 1) and not clip.contents.cache_pass
    assert "eager" in clip.settings


def test_modules_share_the_weights_and_have_their_tables(small: Small) -> None:
    found = small("wan2.1-1.3b")
    theirs = part(found.model.transformer, found.dit)
    assert theirs.proj_out.weight.data_ptr() == found.dit.proj_out.weight.data_ptr()  # type: ignore[union-attr,operator]
    assert not any(x.is_meta for x in (*theirs.parameters(), *theirs.buffers()))


def test_without_control_the_peer_gives_what_it_gave_for_zeros() -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=6, out_channels=4, text_dim=12,
        freq_dim=32, ffn_dim=64, num_layers=1,
    )  # fmt: skip
    dit.requires_grad_(False)
    x, time, text = torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 12)
    led_nowhere = torch.cat([x, torch.zeros(1, 2, 2, 4, 4)], dim=1)
    (wanted,) = dit(led_nowhere, time, text, return_dict=False)
    leave_control_out(dit, 2)
    assert dit.config.in_channels == 4
    torch.testing.assert_close(dit(x, time, text, return_dict=False)[0], wanted)


def test_the_fastest_settings_are_named(small: Small) -> None:
    said: list[str] = []

    class Dit:
        def set_attention_backend(self, name: str) -> None:
            said.append(name)

        def compile(self) -> None:
            said.append("compiled")

    assert fastest(Dit(), torch.device("cuda")) == "cuDNN attention, torch.compile"
    assert fastest(Dit(), torch.device("cpu")) == "torch.compile"
    assert said == ["_native_cudnn", "compiled", "compiled"]


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("wan2.1-1.3b", 5),
        pytest.param("wan2.2-5b", 5, marks=pytest.mark.slow),
        pytest.param("cogvideox-5b", 9, marks=pytest.mark.slow),
    ],
)
def test_vaes_are_compared_when_their_frames_agree(name: str, frames: int, small: Small) -> None:
    found, now = small(name).at(size=(64, 32)), iter(range(1000))
    section = bench_vae.measure(
        found, ["diffusers", "diffusers-channels-last"], frames=frames, runs=2, warmup=0, top=TOP,
        clock=lambda: float(next(now)),
    )  # fmt: skip
    assert [timing.seconds for timing in section.timings] == [(1.0, 1.0)] * 3
    assert section.ratios["livereel over diffusers"].median == 1.0
    assert section.setup["what"] == "vae" and section.setup["frames"] == frames
    assert section.contents["livereel"] == "full VAE; not text, conversion, encode"
    assert [spent.name for spent in section.work] == ["VAE"] and section.work[0].flops > 0


def test_vaes_that_differ_are_not(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small("wan2.1-1.3b").at(size=(64, 32))
    monkeypatch.setattr(bench_vae, "LEAST_DB", 1000.0)
    with pytest.raises(DifferError, match="so no speed is reported"):
        bench_vae.measure(found, ["diffusers"], frames=1, runs=1, warmup=0, top=TOP)
    odd = small("cogvideox-2b").at(size=(64, 32))
    with pytest.raises(DifferError, match="we make 5 frames and diffusers 8"):
        bench_vae.measure(odd, ["diffusers"], frames=5, runs=1, warmup=0, top=TOP)
    with pytest.raises(InputError, match="such as 5"):
        bench_vae.measure(found, [], frames=4, runs=1, warmup=0, top=TOP)


def test_ceilings_are_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from livereel.benchmarks import ceilings as module

    monkeypatch.setattr(module, "_SIDE", {"cpu": 8})
    monkeypatch.setattr(module, "_BYTES", {"cpu": 64})
    times = iter([0.0, 4.0, 10.0, 12.0, *(x for i in range(7) for x in (20.0, 23.0)),
                  *(x for i in range(9) for x in (0.0, 0.5))])  # fmt: skip
    found = ceilings(torch.device("cpu"), torch.float32, clock=lambda: next(times))
    assert found == Ceilings(flops=2 * 8**3 / 2.0, moved=2 * 64 / 0.5)
