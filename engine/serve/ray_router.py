"""How Ray Serve sends calls to replicas, and how many of those it keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext
    from ray.serve.request_router import PendingRequest, RunningReplica

LATE = 0.1
"""The share of chunks that may come late before one more replica is wanted."""


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]  # Any, as all of Ray here
    """A call with a `session_id`, which is a replica's name, goes there; others to the replica with
    the fewest calls under way, as does one whose replica is gone: that one answers so. Of replicas
    whose calls are not known any more, since none went there, one that answers is taken first.

    Of its base it takes how calls are matched with replicas, which loses none in a burst.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """As `RequestRouter.choose_replicas`."""
        name = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            name = pending_request.metadata.session_id
        pinned = [r for r in candidate_replicas if r.replica_id.unique_id == name]
        if pinned:
            return [pinned]
        known = self.replica_queue_len_cache
        idle = [r for r in candidate_replicas if known.get(r.replica_id) is None]
        return [idle, candidate_replicas] if idle else [candidate_replicas]


class SessionPolicy:
    """As many replicas as there are sessions for, `sessions_each`; and one more than there are
    while chunks come late or sessions are refused."""

    def __init__(self, sessions_each: float) -> None:
        self._sessions_each = sessions_each

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """As Serve asks; it applies bounds and delays itself."""
        known = ctx.aggregated_metrics or {}
        sessions, late, refused = (
            list(known.get(name, {}).values()) for name in ("sessions", "late", "refused")
        )
        wanted = max(1, math.ceil(sum(sessions) / self._sessions_each))
        if max(late, default=0.0) > LATE or sum(refused) > 0:
            wanted = max(wanted, ctx.current_num_replicas + 1)
        return wanted, {}
