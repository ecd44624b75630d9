"""A language model without pictures: every token of its prompt may be pruned, but the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from btp.core.host import PROMPT_TOKENS, Layout
from btp.models.decoder_host import DecoderHost


class TextLM(DecoderHost):
    """Any AutoModelForCausalLM with the standard decoder loop (Llama, Qwen2 and Qwen3, Mistral, OPT).

    The last token of a prompt is never a candidate: the answer is read from it. The others have no place on a grid and
    come from no vision tower, so methods that go by either are refused.
    """

    unit = PROMPT_TOKENS
    kind = "text"

    def __init__(self, model: Any, *, decoder: str | None = None, layers: str | None = None) -> None:
        super().__init__(model, decoder=decoder, layers=layers)
        if not getattr(self.decoder.config, "do_layer_norm_before", True):  # the norms of OPT-350m stand behind
            tower = self.towers["llm"]
            self.towers["llm"] = type(tower)("llm", tower.layers, attention=tower.attention, mlp=tower.mlp)

    def visual_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, S] bool: tokens that may be withdrawn."""
        return self.layout(inputs).visual

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """All tokens of the prompt but padding and the last one.

        Raises:
            ValueError: neither input_ids nor inputs_embeds, or a mask that is not [B, S].
        """
        given = next((inputs[k] for k in ("input_ids", "inputs_embeds") if inputs.get(k) is not None), None)
        if given is None:
            raise ValueError("The inputs hold neither input_ids nor inputs_embeds, so there is no prompt. Pass one.")
        shape, mask = given.shape[:2], inputs.get("attention_mask")
        real = torch.ones(shape, dtype=torch.bool, device=given.device)
        if isinstance(mask, Tensor) and mask.shape == shape:  # other masks are refused by who asks
            real = mask.to(given.device) != 0
        visual = real & (real.flip(1).cumsum(1).flip(1) > 1)  # a real token stands behind it
        none = torch.full_like(visual, -1, dtype=torch.long)
        coord = none[..., None].expand(-1, -1, 3)
        return Layout(visual, coord, none.masked_fill(visual, 0), source=none)

    def picture_grid(self, pixels: Tensor) -> tuple[int, int]:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self.model).__name__} is a text model and takes no pictures.")

    def example(self, batch: int, words: int, length: int) -> dict[str, Tensor]:
        """Model inputs without a tokenizer: equal prompts of `length` ordinary tokens.

        Args:
            batch: rows.
            words: not asked for: there is no picture that they would stand behind.
            length: tokens of a prompt.
        """
        return self.prompt(batch, (), length)
