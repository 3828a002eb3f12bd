"""RateLimits: how many requests each key may make in a span of time."""

from __future__ import annotations

import time

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from pagedlab.interfaces.openai_server.errors import ApiError


class RateLimits:
    """Moving windows, as the `limits` library keeps them; entries of the past expire.

    Args:
        description: such as "60/minute;5/second"; None allows everything.
    """

    def __init__(self, description: str | None) -> None:
        self._items: list[RateLimitItem] = parse_many(description) if description else []
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, who: str) -> None:
        """Count one request of `who`.

        Raises:
            ApiError: 429, with the seconds until there is room again; a refused request is not counted.
        """
        for item in self._items:
            if not self._limiter.test(item, who):
                reset = self._limiter.get_window_stats(item, who).reset_time
                raise ApiError(
                    429,
                    f"The rate limit of {item} is reached: wait, and try again.",
                    code="rate_limit_exceeded",
                    retry_after=reset - time.time(),
                )
        for item in self._items:
            self._limiter.hit(item, who)
