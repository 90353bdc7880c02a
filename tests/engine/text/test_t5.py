"""CogVideoX's text road against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from diffusers import CogVideoXPipeline
from safetensors import safe_open
from transformers import AutoTokenizer, T5Config, UMT5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from livereel.engine.checkpoint.load import build, find_layout
from livereel.engine.checkpoint.save import save_index, write_json
from livereel.engine.text.encoder import PromptWarning, TextEncoder

WORDS = "a small large red circle square is moving left right up down on blue ground"
PROMPTS = ["a red circle", "A  large &amp; red square\nmoving left", ""]


def train_pieces(path: Path) -> None:
    """A SentencePiece model, which CogVideoX's folders hold in place of tokenizer.json."""
    path.mkdir(parents=True)
    corpus = path / "corpus.txt"
    corpus.write_text("\n".join(" ".join(WORDS.split()[i:] + WORDS.split()[:i]) for i in range(16)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path / "spiece"), vocab_size=48, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    corpus.unlink()
    (path / "spiece.vocab").unlink()
    write_json(
        path / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=160, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", initializer_factor=4.0,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(path / "text_encoder")
    train_pieces(path / "tokenizer")
    save_index(
        path,
        {
            "text_encoder": ("transformers", "T5EncoderModel"),
            "tokenizer": ("transformers", "T5Tokenizer"),
        },
    )
    return path


@pytest.mark.parametrize("length", [16, 40])
@torch.no_grad()
def test_embeddings_equal_diffusers(folder: Path, length: int) -> None:
    parts = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
    )
    embed: Any = CogVideoXPipeline._get_t5_prompt_embeds
    wanted = embed(parts, PROMPTS, max_sequence_length=length, device=torch.device("cpu"))
    encoder = TextEncoder.load(folder)
    assert encoder.as_typed
    with pytest.warns(PromptWarning, match="the model does not know"):
        ours = encoder.encode(PROMPTS, length)
    assert ours.shape == (3, length, 16)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert (ours[0, 10:] != 0).any()


def test_a_long_prompt_is_cut_with_a_warning(folder: Path) -> None:
    encoder = TextEncoder.load(folder)
    with pytest.warns(PromptWarning, match="the model reads its first 4 tokens"):
        out = encoder.encode(["a red circle moving left on blue ground"], 4)
    assert out.shape == (1, 4, 16)


def test_t5_and_umt5_are_told_apart_by_their_tables_of_positions(folder: Path) -> None:
    with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    layout = find_layout(shapes, "here")
    assert layout.class_name == "T5EncoderModel"
    values = layout.config(shapes, None)
    model = build("T5EncoderModel", values, "here")
    assert {
        name: tuple(x.shape) for name, x in model.state_dict().items()
    }.items() >= shapes.items()
    assert layout.to_diffusers(list(shapes)) == layout.to_original(list(shapes))
    with torch.device("meta"):
        other = UMT5EncoderModel(UMT5Config(vocab_size=9, d_model=8, num_layers=2, num_heads=2))
    assert find_layout(other.state_dict(), "here").class_name == "UMT5EncoderModel"
