"""What the server measures, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .messages import EngineState, Stats

_SHORT = (0.005, 0.01, 0.02, 0.04, 0.0625, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG = (0.05, 0.1, 0.2, 0.4, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_STATES = ("running", "paused")
_STAGES = ("text", "dit", "cache", "vae", "convert", "wait")


class Metrics:
    """All series of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.first_frame = Histogram(
            "livereel_time_to_first_frame_seconds",
            "From session.create to the first frame's encoding",
            buckets=_LONG,
            registry=registry,
        )
        self.frame_interval = Histogram(
            "livereel_frame_interval_seconds",
            "Between two frames of a stream that runs",
            buckets=_SHORT,
            registry=registry,
        )
        self.chunk = Histogram(
            "livereel_chunk_seconds",
            "What a chunk took",
            ["stage"],
            buckets=_SHORT,
            registry=registry,
        )
        self.control = Histogram(
            "livereel_control_latency_seconds",
            "From a control's arrival to the first frame it shows in",
            ["kind"],
            buckets=_LONG,
            registry=registry,
        )
        self.encoder = Histogram(
            "livereel_encoder_seconds",
            "Encoding one frame at one level",
            ["level"],
            buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064),
            registry=registry,
        )
        self.missed = Counter(
            "livereel_deadline_miss_total", "Chunks that were late", registry=registry
        )
        self.dropped = Counter(
            "livereel_frames_dropped_total",
            "Frames that a viewer was not sent",
            ["reason"],
            registry=registry,
        )
        self.sent = Counter(
            "livereel_frames_total", "Frames that left their stream", registry=registry
        )
        self.refused = Counter(
            "livereel_refused_total", "Requests refused", ["reason"], registry=registry
        )
        self.sessions = Gauge("livereel_sessions", "Open sessions", ["state"], registry=registry)
        self.viewers = Gauge("livereel_viewers", "Open viewers", registry=registry)
        self.queue = Gauge(
            "livereel_session_queue_depth", "Controls that wait for a chunk", registry=registry
        )
        self.kv_bytes = Gauge("livereel_kv_bytes", "KV rings of all sessions", registry=registry)
        self.load = Gauge(
            "livereel_engine_load", "Share of the engine's time that is taken", registry=registry
        )
        self.memory = Gauge(
            "livereel_engine_memory_bytes", "Memory of the engine's process", registry=registry
        )
        self.restarts = Gauge(
            "livereel_engine_restarts", "Times the engine was started anew", registry=registry
        )

    def take_chunk(self, stats: Stats) -> None:
        """Count a chunk's seconds, by stage."""
        for stage in _STAGES:
            self.chunk.labels(stage).observe(getattr(stats, f"{stage}_s"))

    def take_state(self, state: EngineState, viewers: int) -> None:
        """Note how the engine stands."""
        for name in _STATES:
            count = sum(session.state == name for session in state.sessions)
            self.sessions.labels(name).set(count)
        self.viewers.set(viewers)
        self.queue.set(sum(session.queued for session in state.sessions))
        self.kv_bytes.set(sum(session.kv_bytes for session in state.sessions))
        self.load.set(state.load)
        self.memory.set(state.memory_bytes)
        self.restarts.set(state.restarts)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)
