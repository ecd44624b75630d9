"""Architecture and tokenizer of the embedded text model `pocket_text`: a small, ordinary Llama.

Only its recipe builds it; everybody else loads the shipped checkpoint like any other.
"""

from collections.abc import Iterable

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from btp.models.embedded.pocket import build_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'].upper() + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def build_text_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer with left padding and a chat template; digits are one token each."""
    tokenizer = build_tokenizer(words, extra={})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_text_model(tokenizer: PreTrainedTokenizerFast, text: dict) -> LlamaForCausalLM:
    """Make the model with random weights.

    Args:
        tokenizer: Its tokenizer.
        text: Sizes of the decoder (keys of LlamaConfig).
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True, **text, **ids
    )
    model = LlamaForCausalLM(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model
