from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs ray[serve]")


def ctx(replicas: int, **metrics: list[float]) -> Any:
    known = {name: dict(enumerate(values)) for name, values in metrics.items()}
    return SimpleNamespace(aggregated_metrics=known, current_num_replicas=replicas)


@pytest.mark.parametrize(
    ("replicas", "metrics", "wanted"),
    [
        (1, {}, 1),
        (1, {"sessions": [2.0]}, 1),
        (1, {"sessions": [5.0]}, 2),
        (2, {"sessions": [4.0, 5.0]}, 3),
        (3, {"sessions": [1.0, 1.0, 0.0]}, 1),
        (2, {"sessions": [1.0, 1.0], "late": [0.0, 0.5]}, 3),
        (2, {"sessions": [1.0, 1.0], "refused": [0.4, 0.0]}, 3),
    ],
)
def test_replicas_follow_sessions_late_chunks_and_refusals(
    replicas: int, metrics: dict[str, list[float]], wanted: int
) -> None:
    from livereel.engine.serve.ray_router import SessionPolicy

    assert SessionPolicy(sessions_each=4)(ctx(replicas, **metrics)) == (wanted, {})
