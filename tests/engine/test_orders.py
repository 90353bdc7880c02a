from __future__ import annotations

from pathlib import Path

import pytest

from livereel.engine import InputError, orders
from livereel.engine.orders import Order, Rules


def fit(size: tuple[int, int] | None) -> tuple[int, int]:
    width, height = size or (64, 48)
    if width % 16 or height % 16:
        raise InputError("sides are multiples of 16")
    return width, height


RULES = Rules(fps=16, fit=fit, steps=4)
ORDER = Order(
    line=1, prompt="a red ball", seed=0, frames=80, fps=16, width=64, height=48, steps=None
)


def read(path: Path, *lines: str | bytes) -> tuple[list[Order], list[tuple[int, str]]]:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return orders.read_orders(path, RULES)


def test_a_line_says_what_it_wants_and_the_model_the_rest(tmp_path: Path) -> None:
    found, bad = read(
        tmp_path / "in",
        b'\xef\xbb\xbf{"prompt": "a red ball"}',
        "",
        '{"prompt": "blue", "seed": 18446744073709551615, "frames": 7, "fps": 8, "size": "32x16",'
        ' "steps": 2}\r',
        '{"prompt": "blue", "seconds": 0.5, "fps": 24}',
    )
    assert bad == []
    assert found[0] == ORDER
    assert found[1] == Order(
        line=3, prompt="blue", seed=2**64 - 1, frames=7, fps=8, width=32, height=16, steps=2
    )
    assert (found[2].line, found[2].frames, found[2].name) == (4, 12, "000004.mp4")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 50_000, "not JSON"),
        (b'{"prompt": "\xff"}', "not JSON"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "not JSON"),
        ('"a red ball"', "must be an object"),
        ('{"seed": 1}', "prompt is missing"),
        ('{"prompt": "  "}', "prompt is missing"),
        ('{"prompt": 7}', "prompt is missing"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"prompt": "' + "a" * 10_001 + '"}', "10,001 characters"),
        ('{"prompt": "' + "a" * 70_000 + '"}', "the line has 70,01"),
        ('{"prompt": "a", "colour": "red"}', "unknown field 'colour'"),
        ('{"prompt": "a", "seed": -1}', "seed must be"),
        ('{"prompt": "a", "seed": true}', "seed must be"),
        ('{"prompt": "a", "seed": 18446744073709551616}', "seed must be"),
        ('{"prompt": "a", "steps": 5}', "steps must be a whole number from 1 to 4, got 5"),
        ('{"prompt": "a", "fps": NaN}', "fps must be"),
        ('{"prompt": "a", "fps": 0.01}', "fps must be"),
        ('{"prompt": "a", "seconds": -1}', "seconds must be"),
        ('{"prompt": "a", "seconds": 1e99}', "seconds must be"),
        ('{"prompt": "a", "seconds": 0.01}', "are 0 frames"),
        ('{"prompt": "a", "frames": 0}', "frames must be"),
        ('{"prompt": "a", "frames": 2.5}', "frames must be"),
        ('{"prompt": "a", "frames": 2, "seconds": 1}', "not both"),
        ('{"prompt": "a", "size": "big"}', "size must be"),
        ('{"prompt": "a", "size": 64}', "size must be"),
        ('{"prompt": "a", "size": "30x16"}', "multiples of 16"),
    ],
)
def test_a_bad_line_is_told_with_its_reason_and_the_others_read(
    tmp_path: Path, line: str | bytes, reason: str
) -> None:
    found, bad = read(tmp_path / "in", '{"prompt": "a"}', line, '{"prompt": "b"}')
    assert [order.prompt for order in found] == ["a", "b"]
    ((number, told),) = bad
    assert number == 2 and reason in told and len(told) < 300


def test_files_too_long_or_missing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="cannot read"):
        orders.read_orders(tmp_path / "none", RULES)
    monkeypatch.setattr(orders, "MAX_LINES", 2)
    with pytest.raises(InputError, match="more than 2 lines"):
        read(tmp_path / "in", "", "", "", "")
    monkeypatch.setattr(orders, "MAX_FILE", 10)
    with pytest.raises(InputError, match="more than 10 bytes"):
        read(tmp_path / "in", '{"prompt": "a"}')
