from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from livereel.engine.checkpoint.convert import convert
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.checkpoint.load import load_component
from livereel.engine.checkpoint.recipes import RECIPES
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.wan import keys
from livereel.engine.text import keys as text_keys
from livereel.engine.text.encoder import TextEncoder
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

HEADS = 2
WORDS = ["a", "red", "circle"]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def dit() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )


@pytest.fixture(scope="module")
def text() -> UMT5EncoderModel:
    torch.manual_seed(2)
    config = UMT5Config(
        vocab_size=len(WORDS) + 3, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    )
    return UMT5EncoderModel(config).eval()


def original(model: torch.nn.Module) -> State:
    state = model.state_dict()
    layout = keys.VAE if isinstance(model, AutoencoderKLWan) else keys.TRANSFORMER
    names = layout.to_original(list(state))
    return {names[name]: tensor for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def wrapped(state: State) -> State:
    """Names as FSDP leaves them when it wraps the model and each of its blocks."""
    names = {
        name: "model._fsdp_wrapped_module."
        + (name.replace(".", "._fsdp_wrapped_module.", 2).replace(
            "blocks._fsdp_wrapped_module.", "blocks.") if name.startswith("blocks.") else name)
        for name in state
    }  # fmt: skip
    return {names[name]: tensor for name, tensor in state.items()}


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    state = ours.state_dict()
    assert set(state) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def assert_both_load(folder: Path, dit: WanTransformer3DModel) -> None:
    assert_same(load_component(open_folder(folder), "transformer"), dit)
    theirs = WanTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
    assert_same(theirs, dit)
    assert dict(theirs.config)["num_attention_heads"] == HEADS


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_wans_own_file(tmp_path: Path, dit: WanTransformer3DModel, ending: str) -> None:
    source = tmp_path / f"wan.{ending}"
    (save_file if ending == "safetensors" else torch.save)(original(dit), source)
    out = convert(source, tmp_path / "out", num_heads=HEADS)
    assert_both_load(out, dit)
    assert not open_folder(out).has_recipe


def test_self_forcing_takes_the_average_without_its_wrappers(
    tmp_path: Path, dit: WanTransformer3DModel
) -> None:
    state = original(dit)
    other = {name: tensor + 1 for name, tensor in state.items()}
    source = tmp_path / "checkpoint.pt"
    torch.save({"generator": prefixed(other, "model."), "generator_ema": wrapped(state)}, source)
    out = convert(source, tmp_path / "out", num_heads=HEADS)
    assert_both_load(out, dit)
    assert open_folder(out).stream == RECIPES["self-forcing"]


@pytest.mark.parametrize("name", ["longlive_base.pt", "CausVid/auto/model.pt"])
def test_recipes_go_by_name(tmp_path: Path, dit: WanTransformer3DModel, name: str) -> None:
    source = tmp_path / name
    source.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"generator": prefixed(original(dit), "model.")}, source)
    out = convert(source, tmp_path / "out", num_heads=HEADS)
    assert_both_load(out, dit)
    wanted = RECIPES["longlive" if "longlive" in name else "causvid"]
    assert open_folder(out).stream == wanted


def test_a_nameless_generator_needs_a_recipe(tmp_path: Path, dit: WanTransformer3DModel) -> None:
    source = tmp_path / "a" / "b" / "model.pt"
    source.parent.mkdir(parents=True)
    torch.save({"generator": prefixed(original(dit), "model.")}, source)
    with pytest.raises(CheckpointError, match="recipe=self-forcing or longlive or causvid"):
        convert(source, tmp_path / "out", num_heads=HEADS)
    out = convert(source, tmp_path / "out", num_heads=HEADS, recipe="causvid")
    assert open_folder(out).stream.timesteps == (1000, 757, 522)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "module.", ""])
def test_other_prefixes_and_finished_names(
    tmp_path: Path, dit: WanTransformer3DModel, prefix: str
) -> None:
    source = tmp_path / "dit.safetensors"
    save_file(prefixed(dit.state_dict(), prefix), source)
    assert_both_load(convert(source, tmp_path / "out", num_heads=HEADS), dit)


def wan_folder(
    path: Path, dit: WanTransformer3DModel, vae: AutoencoderKLWan, text: UMT5EncoderModel
) -> Path:
    """The layout of the Wan repository's download."""
    path.mkdir()
    save_file(original(dit), path / "diffusion_pytorch_model.safetensors")
    own = {"_class_name": "WanModel", "dim": 24, "num_heads": HEADS, "model_type": "t2v"}
    (path / "config.json").write_text(json.dumps(own))
    torch.save(original(vae), path / "Wan2.1_VAE.pth")
    state = {k: v for k, v in text.state_dict().items() if k != "encoder.embed_tokens.weight"}
    names = text_keys.to_original(list(state))
    encoder = {names[name]: tensor for name, tensor in state.items()}
    torch.save(encoder, path / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokenizer(build_tokenizer(WORDS), path / "google" / "umt5-xxl")
    return path


def assert_whole(
    out: Path, dit: WanTransformer3DModel, vae: AutoencoderKLWan, text: UMT5EncoderModel
) -> None:
    pipeline = WanPipeline.from_pretrained(out, local_files_only=True)
    assert_same(pipeline.transformer, dit)
    assert_same(pipeline.vae, vae)
    assert_same(pipeline.text_encoder, text)
    assert_same(load_component(open_folder(out), "vae"), vae)
    ours = TextEncoder.load(out).encode(["a red circle"], 8)
    theirs, _ = pipeline.encode_prompt(
        "a red circle", do_classifier_free_guidance=False, max_sequence_length=8
    )
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)


def test_wans_own_folder_whole(
    tmp_path: Path, dit: WanTransformer3DModel, vae: AutoencoderKLWan, text: UMT5EncoderModel
) -> None:
    out = convert(wan_folder(tmp_path / "wan", dit, vae, text), tmp_path / "out")
    assert_whole(out, dit, vae, text)


def test_a_checkpoint_with_the_rest_from_either_layout(
    tmp_path: Path, dit: WanTransformer3DModel, vae: AutoencoderKLWan, text: UMT5EncoderModel
) -> None:
    source = tmp_path / "self_forcing_dmd.pt"
    torch.save({"generator_ema": prefixed(original(dit), "model.")}, source)
    base = wan_folder(tmp_path / "wan", dit, vae, text)
    first = convert(source, tmp_path / "first", vae=base, text=base, num_heads=HEADS)
    assert_whole(first, dit, vae, text)
    second = convert(source, tmp_path / "second", vae=first, text=first, num_heads=HEADS)
    assert_whole(second, dit, vae, text)
    assert open_folder(second).stream == RECIPES["self-forcing"]


def test_weights_are_cast_but_for_what_runs_in_fp32(
    tmp_path: Path, dit: WanTransformer3DModel
) -> None:
    source = tmp_path / "wan.safetensors"
    save_file(original(dit), source)
    out = convert(source, tmp_path / "out", num_heads=HEADS, dtype=torch.bfloat16)
    state = load_component(open_folder(out), "transformer").state_dict()
    assert state["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    keep = set(getattr(load_component(open_folder(out), "transformer"), "keep_in_fp32", ()))
    for name, tensor in state.items():
        kept = not keep.isdisjoint(name.split("."))
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name


def test_a_lone_vae_makes_a_folder_of_its_own(tmp_path: Path, vae: AutoencoderKLWan) -> None:
    torch.save(original(vae), tmp_path / "vae.pth")
    out = convert(tmp_path / "vae.pth", tmp_path / "out")
    assert set(open_folder(out).classes) == {"vae"}
    assert_same(load_component(open_folder(out), "vae"), vae)


def change(state: State, **changes: Any) -> State:
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"blocks.1.norm3.weight": None}, "blocks.1.norm2.weight"),
        ({"vace_blocks.0.after_proj.weight": torch.zeros(1)}, "vace_blocks"),
        ({"blocks.1.ffn.0.weight": torch.zeros(31, 24)}, r"\[31, 24\] instead of \[32, 24\]"),
        ({"patch_embedding.weight": None}, "no model that LiveReel knows"),
        ({"blocks.0.attn1.to_q.weight": torch.zeros(24, 24)}, "mixes two layouts"),
        ({"model.head.head.bias": torch.zeros(64)}, "twice"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    tmp_path: Path, dit: WanTransformer3DModel, changes: dict[str, Any], named: str
) -> None:
    source = tmp_path / "wan.pth"
    torch.save(change(original(dit), **changes), source)
    with pytest.raises(CheckpointError, match=named) as error:
        convert(source, tmp_path / "out", num_heads=HEADS)
    assert str(source) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wan.pth"]


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", "absent", "notes.md"])
def test_sources_that_are_no_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(CheckpointError, match=name):
        convert(tmp_path / name, tmp_path / "out")


def test_the_head_count_must_be_known(tmp_path: Path, dit: WanTransformer3DModel) -> None:
    source = tmp_path / "wan.safetensors"
    save_file(original(dit), source)
    with pytest.raises(CheckpointError, match=r"wan\.safetensors.*width 24"):
        convert(source, tmp_path / "out")


def test_a_folder_in_diffusers_layout_needs_no_conversion(
    tmp_path: Path, vae: AutoencoderKLWan
) -> None:
    torch.save(original(vae), tmp_path / "vae.pth")
    out = convert(tmp_path / "vae.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match="already"):
        convert(out, tmp_path / "again")
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "vae.pth", out)
    with pytest.raises(InputError, match="recipe must be one of"):
        convert(tmp_path / "vae.pth", tmp_path / "other", recipe="turbo")


def test_parts_of_the_wrong_kind_are_named(
    tmp_path: Path, dit: WanTransformer3DModel, vae: AutoencoderKLWan
) -> None:
    torch.save(original(dit), tmp_path / "dit.pth")
    with pytest.raises(CheckpointError, match=r"dit\.pth holds a transformer, not a vae"):
        convert(tmp_path / "dit.pth", tmp_path / "out", vae=tmp_path / "dit.pth", num_heads=HEADS)
    with pytest.raises(CheckpointError, match="neither"):
        convert(tmp_path / "dit.pth", tmp_path / "out", text=tmp_path, num_heads=HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("channels", "pipeline", "options"),
    [
        ((16, 16), "WanPipeline", {}),
        ((36, 16), "WanImageToVideoPipeline", {}),
        ((48, 48), "WanPipeline", {"expand_timesteps": True}),
    ],
)
def test_channels_tell_the_pipeline(
    tmp_path: Path, channels: tuple[int, int], pipeline: str, options: dict[str, Any]
) -> None:
    model = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32,
        num_layers=1, in_channels=channels[0], out_channels=channels[1],
    )  # fmt: skip
    save_file(original(model), tmp_path / "wan.safetensors")
    out = convert(tmp_path / "wan.safetensors", tmp_path / "out", num_heads=HEADS)
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == pipeline
    assert {
        k: v for k, v in index.items() if k in ("expand_timesteps", "boundary_ratio")
    } == options
    assert open_folder(out).clean_start is bool(options)


def test_two_experts(tmp_path: Path, dit: WanTransformer3DModel) -> None:
    source = tmp_path / "wan"
    other = {name: tensor + 1 for name, tensor in original(dit).items()}
    for name, state in (("high_noise_model", original(dit)), ("low_noise_model", other)):
        (source / name).mkdir(parents=True)
        save_file(state, source / name / "diffusion_pytorch_model.safetensors")
    out = convert(source, tmp_path / "out", num_heads=HEADS)
    folder = open_folder(out)
    assert folder.boundary_ratio == 0.875
    assert_same(load_component(folder, "transformer"), dit)
    second = load_component(folder, "transformer_2").state_dict()
    assert all(torch.equal(second[name], x + 1) for name, x in dit.state_dict().items())
