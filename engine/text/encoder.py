"""Prompts to embeddings through the T5 or UMT5 encoder and the tokenizer of a checkpoint's folder.

Local files and safetensors only; nothing a checkpoint says makes code run. transformers is imported
on first use, and no more of it than this needs.

Shapes: B prompts, L tokens, D width of the encoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..checkpoint.folder import open_folder, read_json
from ..checkpoint.load import build
from ..checkpoint.weights import load_weights
from ..errors import CheckpointError, InputError
from .cleaning import MAX_CHARACTERS, clean
from .keys import TIED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.models.t5.modeling_t5 import T5EncoderModel
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

SMALL_VOCABULARY = 1000
"""A tokenizer with fewer entries knows whole words only, few enough to list to a user."""

_AS_TYPED = {"UMT5EncoderModel": False, "T5EncoderModel": True}
"""The encoders there are, and whether a prompt goes to them as it was typed, padding and all."""
_MAX_LAYERS = 128
_LISTED = 8  # unknown words that a warning spells out
_TOKENIZER_BYTES = 64 << 20


class PromptWarning(UserWarning):
    """A prompt holds words that the model does not know, or more tokens than it reads."""


class UMT5Encoder:
    """The registry's name for transformers' `UMT5EncoderModel`, imported when one is built."""

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> UMT5EncoderModel:
        """Build from a transformers `config.json`; `CheckpointError` when that describes none."""
        from transformers.models.umt5.configuration_umt5 import UMT5Config
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        return cast("UMT5EncoderModel", _built(values, "umt5", UMT5Config, UMT5EncoderModel))


class T5Encoder:
    """The registry's name for transformers' `T5EncoderModel`, imported when one is built."""

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> T5EncoderModel:
        """Build from a transformers `config.json`; `CheckpointError` when that describes none."""
        from transformers.models.t5.configuration_t5 import T5Config
        from transformers.models.t5.modeling_t5 import T5EncoderModel

        return cast("T5EncoderModel", _built(values, "t5", T5Config, T5EncoderModel))


def _built(values: Mapping[str, Any], kind: str, config: Any, model: Any) -> Any:
    if values.get("model_type") != kind:
        raise CheckpointError(f"model_type must be {kind!r}")
    layers = values.get("num_layers", 8)
    if not isinstance(layers, int) or not 1 <= layers <= _MAX_LAYERS:
        raise CheckpointError(f"num_layers must be from 1 to {_MAX_LAYERS}")
    try:
        return model(config.from_dict(dict(values)))
    except Exception as error:  # whatever the library makes of a config that it did not write
        raise CheckpointError(f"no {model.__name__} can be built: {error}") from error


class TextEncoder:
    """A model's text road; `encode` gives what diffusers' pipelines give for the same folder.

    Wan's: clean, tokenize, encode under the attention mask, zero what is padding. CogVideoX's, for
    prompts `as_typed`: tokenize, encode with padding attended to like words.
    """

    def __init__(
        self,
        model: UMT5EncoderModel | T5EncoderModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        as_typed: bool = False,
    ) -> None:
        self.model = model
        self.as_typed = as_typed
        self.tokenizer: Any = tokenizer  # its calls are untyped in some releases

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """Read `text_encoder/` and `tokenizer/` of the model folder `path`.

        The encoder's floats become `dtype` (None keeps the files'). Raises `CheckpointError` when
        either is missing, corrupt or of another kind.
        """
        component = open_folder(path).component("text_encoder")
        if component.class_name not in _AS_TYPED:
            raise CheckpointError(
                f"{path} has a {component.class_name[:64]} as its text encoder; "
                f"LiveReel runs {' and '.join(_AS_TYPED)}"
            )
        model = build(component.class_name, component.config, component.path / "config.json")
        load_weights(
            model,
            component.path,
            device=device,
            dtype=dtype,
            # The last layer of T5's feed-forward overflows float16; bfloat16 has the range.
            keep_in_fp32=("wo",) if dtype == torch.float16 else (),
            tied=TIED,
        )
        return cls(
            cast("UMT5EncoderModel | T5EncoderModel", model),
            load_tokenizer(Path(path) / "tokenizer"),
            as_typed=_AS_TYPED[component.class_name],
        )

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.model.config.d_model)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_length: int) -> Tensor:
        """Embeddings `[B, L, D]` with L = `max_length`, on the encoder's device, in its dtype.

        Rows past a prompt's own tokens (its end mark included) are zero, or where prompts go
        `as_typed` what the encoder makes of padding. A `PromptWarning` says
        which words a small vocabulary does not know, and when a prompt is cut. Raises `InputError`
        for no prompts, one that is no text or longer than 10,000 characters, or a `max_length`
        below 1.
        """
        ids = self._tokenize(prompts, max_length)
        lengths = [len(row) for row in ids]
        longest = max_length if self.as_typed else max(1, *lengths)
        device = self.model.device
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(ids), longest, dtype=torch.long)
        for row, length in enumerate(lengths):
            tokens[row, :length] = torch.tensor(ids[row], dtype=torch.long)
            mask[row, :length] = 1
        if self.as_typed:
            read: Tensor = self.model(tokens.to(device)).last_hidden_state
            return read
        # Padding beyond the longest prompt would be masked and then zeroed: leave it out.
        hidden = self.model(tokens.to(device), mask.to(device)).last_hidden_state
        out: Tensor = hidden.new_zeros(len(ids), max_length, hidden.shape[-1])
        for row, length in enumerate(lengths):
            out[row, :length] = hidden[row, :length]
        return out

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of `prompt` that the tokenizer has no entry for, each once, in order."""
        text = self._read(prompt)
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        unknown = self.tokenizer.unk_token_id
        pairs = zip(out["input_ids"], out["offset_mapping"], strict=True)
        words = [text[start:end] for token, (start, end) in pairs if token == unknown]
        return list(dict.fromkeys(words))

    @cached_property
    def known_words(self) -> tuple[str, ...]:
        """The words of a small vocabulary in its order; empty when it is too large to list."""
        if len(self.tokenizer) >= SMALL_VOCABULARY:
            return ()
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        special = set(self.tokenizer.all_special_tokens)
        ordered = sorted(vocabulary, key=vocabulary.__getitem__)
        return tuple(word for word in ordered if word not in special)

    def _tokenize(self, prompts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each prompt, unpadded, at most `max_length` of them."""
        if isinstance(prompts, str) or not prompts:
            raise InputError("encode takes a list of at least one prompt")
        if max_length < 1:
            raise InputError(f"max_length must be at least 1, got {max_length}")
        texts = [self._read(prompt) for prompt in prompts]
        self._warn_of_unknown(texts)
        ids: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=max_length)[
            "input_ids"
        ]
        for text, row in zip(texts, ids, strict=True):
            # A row that fills the space exactly may or may not have been cut.
            if len(row) == max_length and len(self.tokenizer(text)["input_ids"]) > max_length:
                warnings.warn(
                    f"the prompt is cut: the model reads its first {max_length} tokens",
                    PromptWarning,
                    stacklevel=3,
                )
        return ids

    def _read(self, prompt: str) -> str:
        return _checked(prompt) if self.as_typed else clean(_checked(prompt))

    def _warn_of_unknown(self, texts: Sequence[str]) -> None:
        if not self.known_words:
            return
        unknown = dict.fromkeys(word for text in texts for word in self.unknown_words(text))
        if unknown:
            shown = ", ".join(repr(word) for word in list(unknown)[:_LISTED])
            rest = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
            warnings.warn(
                f"the model does not know {shown}{rest}; "
                f"the words it knows are {', '.join(self.known_words)}",
                PromptWarning,
                stacklevel=4,
            )


def _checked(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"a prompt may have at most {MAX_CHARACTERS:,} characters, got {len(prompt):,}"
        )
    return prompt


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder's `tokenizer/`; raises `CheckpointError`."""
    from transformers import AutoTokenizer

    config = read_json(path / "tokenizer_config.json", limit=_TOKENIZER_BYTES)
    if "auto_map" in config:
        raise CheckpointError(f"{path} asks for code of its own, which LiveReel never runs")
    try:
        auto: Any = AutoTokenizer  # untyped in some releases
        tokenizer = auto.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises bare exceptions of its own for bad files
        raise CheckpointError(f"{path} holds no tokenizer that loads: {error}") from error
    if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{path} must hold a fast tokenizer (tokenizer.json) with a pad token"
        )
    return tokenizer  # type: ignore[no-any-return]
