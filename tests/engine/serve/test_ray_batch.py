from __future__ import annotations

import numpy as np

from livereel.engine.orders import Order
from livereel.engine.serve.fake import FakeEngine, number_of
from livereel.engine.serve.ray_batch import clips_of


def order(line: int, frames: int, width: int = 128) -> Order:
    return Order(
        line=line, prompt="red", seed=0, frames=frames, fps=16, width=width, height=128, steps=None
    )


def test_clips_come_whole_several_at_once_and_what_cannot_be_is_told() -> None:
    orders = [order(1, 30), order(2, 5), order(3, 9, width=100), order(4, 14), order(5, 1)]
    made: dict[int, list[object]] = {o.line: [] for o in orders}
    engine = FakeEngine(limit=2, hurry=True)
    for o, got in clips_of(engine, orders, at_once=3):  # one more than fit
        made[o.line].append(got)
    assert "multiples of 16" in str(made[3])
    for o in (orders[0], orders[1], orders[3], orders[4]):
        *frames, last = made[o.line]
        assert last is None
        numbers = [number_of(frame) for frame in np.concatenate(frames)]  # type: ignore[arg-type]
        assert numbers == list(range(o.frames))
    assert engine.health == "down"
