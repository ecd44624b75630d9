"""Lock on forwards: a second one waits in another thread, and is refused inside the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A lock that knows its owner. What an engine holds about the forward under way belongs to that thread alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @property
    def mine(self) -> bool:
        """Whether this thread is inside a forward."""
        return self._owner == threading.get_ident()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn, and hold it.

        Raises:
            RuntimeError: this thread holds it already, so that waiting would never end.
        """
        if self.mine:
            raise RuntimeError(
                "The model was called inside its own forward (by a pruner, a hook or a callback), while the engine is "
                "in the middle of a prompt. Call it before or behind that forward."
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """The same for work that may be part of a forward or stand in front of it, as encoding pictures."""
        if self.mine:
            yield
        else:
            with self.taken():
                yield
