"""A prompt as Wan's text encoder was trained to see it."""

from __future__ import annotations

import html
import re

MAX_CHARACTERS = 10_000


def clean(prompt: str) -> str:
    """Mend mis-decoded text, undo HTML escapes (twice), and squeeze white space to single blanks.

    The steps and their order are those of the Wan repository (`wan/modules/tokenizers.py`).
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text.strip()).strip()
