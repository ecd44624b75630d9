"""JSON objects with their place in the file, for messages about missing or wrong keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from btp.tasks.shown import brief, short


class Entry(dict[str, Any]):
    """An object of a file.

    Args:
        found: what the file has in its place.
        where: file and place, for messages.

    Raises:
        ValueError: it is no object.
    """

    def __init__(self, found: Any, where: str):
        if not isinstance(found, Mapping):
            raise ValueError(f"{where} is {brief(found)}, not an object with keys. Get the file anew.")
        super().__init__(found)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.where} lacks `{short(key, 60)}`. Get the file anew.")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; nothing where the key is absent.

        Raises:
            ValueError: it holds something else.
        """
        found = self.get(key) or []
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{self.where}: `{key}` is {brief(found)}, not a list of texts. Get the file anew.")
        return tuple(found)

    def entries(self, key: str) -> list[Entry]:
        """A list of objects.

        Raises:
            ValueError: it holds something else.
        """
        return entries(self[key], f"{self.where}, {key}")


def entries(found: Any, where: str) -> list[Entry]:
    """A list of objects, each with its place.

    Raises:
        ValueError: it is no list, or something else is in it.
    """
    if not isinstance(found, list):
        raise ValueError(f"{where} holds {brief(found)}, not a list of objects. Get the file anew.")
    return [Entry(one, f"{where}, entry {number}") for number, one in enumerate(found)]
