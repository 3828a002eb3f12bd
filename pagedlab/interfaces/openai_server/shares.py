"""Shares: how much of the engine one key may hold at once, so that no tenant locks the others out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pagedlab.interfaces.openai_server.errors import ApiError


class Shares:
    """Counts the completions that are unfinished, by tenant.

    A limit on requests a minute does not bound them: one request may ask for n completions of each of 256 prompts.

    Args:
        most: completions that one tenant may have unfinished; None does not limit them.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def take(self, who: str, count: int) -> Callable[[], None]:
        """Take `count` of who's share. Returns what gives them back; to call it twice does no harm.

        Raises:
            ApiError: 429, there is no room for them; 400, there never will be.
        """
        if self._most is not None and count > self._most:
            raise ApiError(
                400, f"{count} completions were asked for at once and {self._most} are allowed: ask for less."
            )
        if self._most is not None and self._taken[who] + count > self._most:
            raise ApiError(
                429,
                f"{self._taken[who]} of your completions are unfinished, {count} more came, and {self._most} are "
                "allowed: wait for one to end.",
                code="rate_limit_exceeded",
                retry_after=1,
            )
        self._taken[who] += count
        left = [count]

        def give_back() -> None:
            self._taken[who] -= left[0]
            left[0] = 0
            if not self._taken[who]:
                del self._taken[who]

        return give_back
