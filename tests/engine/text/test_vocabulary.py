from __future__ import annotations

import json
from pathlib import Path

import pytest

from livereel.engine.errors import InputError
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

WORDS = ["a", "small", "red", "circle", "moving", "left"]


def test_saved_files_load_offline_through_auto_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(build_tokenizer(WORDS), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    out = tokenizer(
        ["A small, RED  circle!", "a zebra moving left"],
        padding="max_length",
        max_length=7,
        truncation=True,
    )
    assert out["input_ids"] == [[3, 4, 5, 6, 1, 0, 0], [3, 2, 7, 8, 1, 0, 0]]
    assert out["attention_mask"] == [[1, 1, 1, 1, 1, 0, 0]] * 2
    assert tokenizer.vocab_size == len(WORDS) + 3


def test_truncation_keeps_the_end_mark() -> None:
    tokenizer = build_tokenizer(WORDS)
    assert tokenizer("a a a a a", truncation=True, max_length=3)["input_ids"] == [3, 3, 1]


def test_config_names_a_class_that_both_major_versions_know(tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer(WORDS), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("words", [["a", "a"], ["Red"], ["two words"], ["t-shirt"], [""], ["</s>"]])
def test_words_that_could_never_match_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="words must"):
        build_tokenizer(words)
