"""Answer loss over many questions that share one picture: each sees the picture and itself, nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, LlavaForConditionalGeneration, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


def _packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Causal attention for the shared rows and the mask for those of the text: half the time of one masked call.

    `packed_text` is how many rows are text; `packed_early`, where given, is the mask of the first layers in its place:
    (how many layers, mask).
    """
    text = kwargs["packed_text"]
    early, first_mask = kwargs.get("packed_early") or (0, None)
    if module.layer_idx < early:
        attention_mask = first_mask
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    shared = query.shape[2] - text
    first = F.scaled_dot_product_attention(
        query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], is_causal=True, scale=scaling
    )
    mask = attention_mask[:, :, shared:]
    second = F.scaled_dot_product_attention(query[:, :, shared:], key, value, attn_mask=mask, scale=scaling)
    return torch.cat([first, second], 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("packed", _packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


def answer_loss(
    model: LlavaForConditionalGeneration,
    patches: Tensor,
    batch: dict[str, Tensor],
    head: list[int],
    layer: int | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """As `packed_loss`, of what LLaVA's projector makes of the vision tower's output.

    Args:
        model: LLaVA.
        patches: [B, N, D] output of the vision tower.
    """
    return packed_loss(model, model.model.multi_modal_projector(patches), batch, head, layer)


def packed_loss(
    model: PreTrainedModel, visual: Tensor, batch: dict[str, Tensor], head: list[int], layer: int | None = None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Cross-entropy of the answers' tokens, and the share of them that is right.

    Args:
        model: One of the LLaVAs.
        visual: [B, N, D] visual tokens as the decoder gets them.
        batch: ids, position, segment and target, each [B, T].
        head: Token ids in front of the visual tokens.
        layer: Decoder layer in front of which the visual tokens' states are wanted too.

    Returns:
        The losses; [B, N, D] states of the visual tokens, None unless asked for.
    """
    llava = model.model
    llava.language_model.config._attn_implementation = "packed"
    words = llava.get_input_embeddings()
    b, device = len(visual), visual.device
    begin = words(torch.tensor(head, device=device)).expand(b, -1, -1)
    prefix = torch.cat([begin, visual], 1)
    p, t = prefix.shape[1], batch["ids"].shape[1]
    position = torch.cat([torch.arange(p, device=device).expand(b, -1), batch["position"] + p], 1)
    segment = torch.cat([torch.zeros(b, p, device=device), batch["segment"]], 1)
    causal = torch.ones(p + t, p + t, dtype=torch.bool, device=device).tril()
    shared = torch.arange(p + t, device=device) < p
    mask = causal & ((segment[:, :, None] == segment[:, None, :]) | shared)
    out = llava.language_model(
        inputs_embeds=torch.cat([prefix, words(batch["ids"])], 1),
        attention_mask=mask[:, None],
        position_ids=position,
        use_cache=False,
        output_hidden_states=layer is not None,
        packed_text=t,
    )
    asked = batch["target"] >= 0
    logits = model.lm_head(out.last_hidden_state[:, p:][asked])
    right = (logits.argmax(-1) == batch["target"][asked]).float().mean()
    states = None if layer is None else out.hidden_states[layer][:, len(head) : p]
    return {"answer": F.cross_entropy(logits, batch["target"][asked]), "right": right}, states
