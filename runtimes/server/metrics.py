"""What Prometheus may ask a server: counts, a queue, and where the milliseconds went."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._requests: Final = Counter(
            "rfedge_requests",
            "Requests by outcome: ok, reset, or what went wrong.",
            ["outcome"],
            registry=self._registry,
        )
        self._stages: Final = Histogram(
            "rfedge_stage_seconds",
            "Duration of answered frames: queue is the wait for the policy, total is from arrival to answer.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._handshakes: Final = Counter(
            "rfedge_handshakes", "Requests to connect by HTTP status.", ["status"], registry=self._registry
        )
        self._closes: Final = Counter(
            "rfedge_closes",
            "Websockets that ended with a closing frame of ours, by its code.",
            ["code"],
            registry=self._registry,
        )
        self._closed_sockets: Final = Counter(
            "rfedge_closed_sockets",
            "Sockets cut off: waiting (too long, others wanted the place), address (too many of one), unread, fragments.",
            ["reason"],
            registry=self._registry,
        )
        self.connections: Final = Gauge("rfedge_connections", "Open websocket connections.", registry=self._registry)
        self.waiting: Final = Gauge(
            "rfedge_waiting_requests", "Requests that wait for the policy or run.", registry=self._registry
        )
        info = Gauge("rfedge_server_info", "Always 1.", ["version", "policy", "precision"], registry=self._registry)
        info.labels(rfedge.__version__, policy, precision).set(1)

    def count_request(self, outcome: str) -> None:
        """Count one request under `outcome`: "ok", "reset" or one of `wire.ERROR_KINDS`."""
        self._requests.labels(outcome).inc()

    def count_close(self, code: int) -> None:
        """Count one websocket that this side closed with `code`, such as 1009 for a message beyond the limit."""
        self._closes.labels(str(code)).inc()

    def count_closed_socket(self, reason: str) -> None:
        """Count one socket that was cut off: "waiting", "address", "unread" or "fragments"."""
        self._closed_sockets.labels(reason).inc()

    def count_handshake(self, status: int) -> None:
        """Count one HTTP request by its answer; 101 became a connection."""
        self._handshakes.labels(str(status)).inc()

    def observe_ms(self, stages_ms: Mapping[str, float]) -> None:
        """Add one duration, in milliseconds, to each named stage."""
        for stage, duration_ms in stages_ms.items():
            self._stages.labels(stage).observe(duration_ms / 1e3)

    def render(self) -> str:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry).decode()
