"""Metrics of a server for Prometheus: counts, a queue, and where the milliseconds went."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import rfedge

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
# From a tiny policy to a 3B one on two cores.
_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class ServerMetrics:
    """Counters of one server, in a registry of its own: two servers in one process do not add up."""

    def __init__(self, *, policy: str, precision: str) -> None:
        self._registry: Final = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self._registry), partial(Gauge, registry=self._registry)
        self.requests: Final = counter("rfedge_requests", "Requests by outcome: ok, reset, or what went wrong.", ["outcome"])
        self._stages: Final = Histogram(
            "rfedge_stage_seconds",
            "Duration of answered frames: queue is the wait for the policy, total is from arrival to answer.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self.handshakes: Final = counter("rfedge_handshakes", "Requests to connect by HTTP status.", ["status"])
        self.closes: Final = counter(
            "rfedge_closes", "Websockets that ended with a closing frame of ours, by its code.", ["code"]
        )
        self.closed_sockets: Final = counter(
            "rfedge_closed_sockets",
            "Sockets cut off: waiting (too long, others wanted the place), address (too many of one), unread, fragments.",
            ["reason"],
        )
        self.connections: Final = gauge("rfedge_connections", "Open websocket connections.")
        self.waiting: Final = gauge("rfedge_waiting_requests", "Requests that wait for the policy or run.")
        info = gauge("rfedge_server_info", "Always 1.", ["version", "policy", "precision"])
        info.labels(rfedge.__version__, policy, precision).set(1)

    def observe_ms(self, stages_ms: Mapping[str, float]) -> None:
        for stage, duration_ms in stages_ms.items():
            self._stages.labels(stage).observe(duration_ms / 1e3)

    def render(self) -> str:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry).decode()
