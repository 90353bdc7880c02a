"""A tokenizer that knows a short list of words: what a small model with a closed language needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, UNKNOWN)  # ids 0, 1, 2, as in T5


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with one id for each of `words`, from 3 on in the given order.

    Text is lower-cased, split at white space and punctuation (which is dropped), and ends with
    `</s>`; a word outside the list becomes `<unk>`. `vocab_size` is `len(words) + 3`.

    Raises `InputError` when a word is repeated or would not survive that split as one piece.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(words):
        raise InputError("a vocabulary's words must differ from one another and from <pad> </s>")
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, vocabulary[EOS])]
    )
    for word in words:
        if tokenizer.encode(word, add_special_tokens=False).ids != [vocabulary[word]]:
            raise InputError(f"a vocabulary's words must be lower-case and whole, got {word!r}")
    cls: Any = PreTrainedTokenizerFast  # untyped in some releases
    built: PreTrainedTokenizerFast = cls(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN
    )
    return built


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` loads offline."""
    folder = Path(folder)
    tokenizer.save_pretrained(str(folder))
    # transformers 5 writes a class name of its own that version 4 does not know; both know this.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
