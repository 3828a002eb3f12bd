"""ServerSettings: every knob of the HTTP server, once, with its meaning, unit and default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pagedlab.errors import ConfigError

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:.]+\](:[0-9]+)?")
"""What a browser sends. "null" is not among them: every page can make itself a frame of that origin."""


@dataclass
class ServerSettings:
    """Options of the server; those of the engine are in EngineConfig.

    Attributes:
        host: address to listen on; the default can be reached from this machine alone.
        port: 0 takes a free one.
        served_model_name: names that clients may call the model by; the first is the one that answers carry.
        api_key: keys that open the server; none lets everybody in. Each key is a tenant of its own.
        allowed_origins: pages that may use the server from a browser, as browsers write their origin
            ("http://localhost:3000"), or "*" for every page that anybody opens here; none lets no page in.
        rate_limit: requests a key (without keys: an address) may make, as `limits` writes it: "60/minute;5/second".
            Addresses are those of the connections: behind a proxy, clients are told apart by keys alone.
        max_pending_requests: unfinished requests; one more is refused with 503.
        max_pending_tokens: prompt tokens of unfinished requests, likewise.
        max_pending_per_key: unfinished completions of one key (n of each prompt), beyond which it gets 429; without
            keys everybody is one. None lets one key fill the whole queue.
        max_body_bytes: a larger request body is refused with 413.
        body_timeout: seconds that a client may take to send a request's head, and again to send its body.
        request_timeout: seconds from a request's arrival to its last token; then it is aborted.
        send_timeout: seconds that a client may leave an answer unread; then it is cut off and its request aborted.
        drain_timeout: seconds that running requests get to finish after SIGTERM.
        dead_engine_grace: seconds that a server with a dead engine goes on answering 503 before it exits.
        log_format: text for people, json for machines: one object a line.
        log_level: debug shows every step of every request's way, which needs EngineConfig.enable_trace.
        otlp_traces_endpoint: OpenTelemetry collector (HTTP) that each request is sent to as spans; None sends nothing.
        trace_file: write what the engine did as Chrome trace events when the server ends; None writes nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: list[str] = field(default_factory=list)
    api_key: list[str] = field(default_factory=list)
    allowed_origins: list[str] = field(default_factory=list)
    rate_limit: str | None = None
    max_pending_requests: int = 1024
    max_pending_tokens: int = 1 << 20
    max_pending_per_key: int | None = None
    max_body_bytes: int = 4 << 20
    body_timeout: float = 30.0
    request_timeout: float = 600.0
    send_timeout: float = 60.0
    drain_timeout: float = 30.0
    dead_engine_grace: float = 5.0
    log_format: str = "text"
    log_level: str = "info"
    otlp_traces_endpoint: str | None = None
    trace_file: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}.")
        for name in ("max_pending_requests", "max_pending_tokens", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_pending_per_key is not None and self.max_pending_per_key < 1:
            raise ConfigError(f"max_pending_per_key must be at least 1, got {self.max_pending_per_key}.")
        for name in ("body_timeout", "request_timeout", "send_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0 seconds, got {getattr(self, name)}.")
        for name in ("drain_timeout", "dead_engine_grace"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0 seconds, got {getattr(self, name)}.")
        if any(not key or not key.isascii() or not key.isprintable() or key != key.strip() for key in self.api_key):
            raise ConfigError(
                "api_key must be printable ASCII without a space at either end, and not empty: an Authorization header "
                "can carry nothing else."
            )
        for origin in self.allowed_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f'allowed_origins must be like "http://localhost:3000", without a path, or "*", got {origin!r}.'
                )
        self._check_rate_limit()

    def _check_rate_limit(self) -> None:
        if self.rate_limit is None:
            return
        from limits import parse_many

        try:
            parse_many(self.rate_limit)
        except ValueError:
            raise ConfigError(
                f'rate_limit must be written like "60/minute" or "5/second;1000/hour", got {self.rate_limit!r}.'
            ) from None
