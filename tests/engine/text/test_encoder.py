from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from livereel.engine.checkpoint.save import save_index
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.text.encoder import PromptWarning, TextEncoder
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

WORDS = ["a", "small", "large", "red", "circle", "moving", "left"]
PROMPTS = ["a red circle", "A large,  red &amp; small circle moving left", ""]


def make(path: Path) -> Path:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(WORDS) + 3,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        initializer_factor=4.0,
    )
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    save_tokenizer(build_tokenizer(WORDS), path / "tokenizer")
    save_index(
        path,
        {
            "text_encoder": ("transformers", "UMT5EncoderModel"),
            "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
        },
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(make(tmp_path_factory.mktemp("model")))


def theirs(folder: Path, prompts: list[str], length: int, dtype: torch.dtype) -> torch.Tensor:
    parts = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval(),
    )
    embed: Any = WanPipeline._get_t5_prompt_embeds
    with torch.no_grad():
        out: torch.Tensor = embed(
            parts, prompts, max_sequence_length=length, device=torch.device("cpu")
        )
    return out


@pytest.mark.filterwarnings("ignore::livereel.engine.text.encoder.PromptWarning")
@pytest.mark.parametrize("length", [3, 8, 32])
def test_embeddings_equal_diffusers(folder: Path, length: int) -> None:
    ours = TextEncoder.load(folder).encode(PROMPTS, length)
    wanted = theirs(folder, PROMPTS, length, torch.float32)
    assert ours.shape == (3, length, 16)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert not ours.requires_grad


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_near_diffusers(folder: Path, dtype: torch.dtype, atol: float) -> None:
    ours = TextEncoder.load(folder, dtype=dtype).encode(PROMPTS[:1], 8)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs(folder, PROMPTS[:1], 8, dtype), rtol=0.05, atol=atol)


def test_padding_is_zero_and_nothing_else(encoder: TextEncoder) -> None:
    out = encoder.encode(["a red circle", ""], 8)
    assert (out.abs().sum(-1) > 0).sum(-1).tolist() == [4, 1]


def test_a_prompt_does_not_depend_on_its_neighbors(encoder: TextEncoder) -> None:
    together = encoder.encode(["a red circle", "a large red circle moving left"], 16)
    alone = encoder.encode(["a red circle"], 16)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_both_spellings_of_the_tied_embedding_load(folder: Path) -> None:
    wanted = TextEncoder.load(folder).encode(PROMPTS[:1], 8)
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, path)
    torch.testing.assert_close(TextEncoder.load(folder).encode(PROMPTS[:1], 8), wanted)


def test_unknown_words_are_listed_once_in_order(encoder: TextEncoder) -> None:
    found = encoder.unknown_words("a Purple zebra, zebra AND red")
    assert found == ["Purple", "zebra", "AND"]
    assert encoder.unknown_words("A small, red circle!") == []
    assert list(encoder.known_words) == WORDS


def test_unknown_words_are_warned_of_with_the_known_ones(encoder: TextEncoder) -> None:
    with pytest.warns(PromptWarning, match=r"'zebra'.*a, small, large, red"):
        encoder.encode(["a zebra"], 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a red circle", "a small circle"], 8)


def test_a_cut_prompt_is_warned_of(encoder: TextEncoder) -> None:
    with pytest.warns(PromptWarning, match="first 4 tokens"):
        encoder.encode(["a large red circle"], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a large red circle"], 5)


@pytest.mark.parametrize(
    ("prompts", "length", "named"),
    [
        ([], 8, "at least one prompt"),
        ("a red circle", 8, "list"),
        ([None], 8, "NoneType"),
        (["x" * 10_001], 8, "10,001"),
        (["a"], 0, "max_length"),
    ],
)
def test_bad_arguments(encoder: TextEncoder, prompts: Any, length: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        encoder.encode(prompts, length)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("text_encoder/config.json", {"model_type": "t5"}),
        ("text_encoder/config.json", {"num_layers": 10**9}),
        ("text_encoder/config.json", {"num_layers": "two"}),
        ("text_encoder/config.json", {"d_model": "wide"}),
        ("text_encoder/config.json", {"feed_forward_proj": 7}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}),
    ],
)
def test_configs_that_cannot_be_used_are_named(
    folder: Path, file: str, values: dict[str, Any]
) -> None:
    edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=file.partition("/")[0]):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/tokenizer.json", b"{}"),
        ("tokenizer/tokenizer.json", b"\xff" * 100),
        ("tokenizer/tokenizer_config.json", b"[]"),
        ("text_encoder/model.safetensors", b"\x80\x02}q\x00."),
    ],
)
def test_corrupt_files_are_named(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file.partition("/")[0]):
        TextEncoder.load(folder)


def test_pickled_weights_are_not_looked_at(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").unlink()
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TextEncoder.load(folder)


def test_another_class_of_encoder_is_refused(folder: Path) -> None:
    save_index(folder, {"text_encoder": ("transformers", "CLIPTextModel")})
    with pytest.raises(CheckpointError, match="CLIPTextModel"):
        TextEncoder.load(folder)
