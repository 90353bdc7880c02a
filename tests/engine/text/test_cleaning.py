from __future__ import annotations

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from livereel.engine.text.cleaning import clean

PROMPTS = {
    "a red circle": "a red circle",
    "  two\t\nlines  ": "two lines",
    "fish &amp;amp; chips": "fish & chips",
    "&amp;lt;b&amp;gt;": "<b>",
    "schÃ¶n": "schön",
    "“curly”": '"curly"',
    "": "",
    " ": "",
    "&nbsp;end&nbsp;": "end",
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_come_out_as_in_diffusers(prompt: str) -> None:
    assert clean(prompt) == PROMPTS[prompt] == prompt_clean(prompt)
