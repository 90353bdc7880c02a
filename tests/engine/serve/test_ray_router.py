from __future__ import annotations

import asyncio
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


@pytest.mark.parametrize(
    ("session", "known", "wanted"),
    [
        ("b", {}, [["b"]]),
        ("", {"a": 3, "b": 1}, [["a", "b"]]),
        ("gone", {"a": 3, "b": 1}, [["a", "b"]]),
        ("", {"a": 3}, [["b"], ["a", "b"]]),  # nothing was sent there for long
    ],
)
def test_calls_go_to_their_session_s_replica_or_where_it_is_quiet(
    session: str, known: dict[str, int], wanted: list[list[str]]
) -> None:
    from livereel.engine.serve.ray_router import SessionRouter

    replicas: list[Any] = [
        SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "ab"
    ]
    lengths = SimpleNamespace(get=lambda replica_id: known.get(replica_id.unique_id))
    router: Any = SimpleNamespace(replica_queue_len_cache=lengths)
    request: Any = SimpleNamespace(
        routing_context=SimpleNamespace(), metadata=SimpleNamespace(session_id=session)
    )
    ranks = asyncio.run(SessionRouter.choose_replicas(router, replicas, request))
    assert [[r.replica_id.unique_id for r in rank] for rank in ranks] == wanted
