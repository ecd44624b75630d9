"""Molmo2: not supported, refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from btp.core.host import Layout
from btp.models.lvlm import LVLM


class Molmo2(LVLM):
    """Patches are pooled into visual tokens by a table in the inputs, which nothing here reads yet."""

    families = ("molmo2",)

    pooled = "attention pooling"

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self.model).__name__} says in image_token_pooling which patches each visual token is of, which is "
            "not read yet, so that its tokens cannot be pruned. Set model to a family that docs/models.md lists."
        )
