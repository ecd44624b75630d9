"""GLM-4.6V: packed patches that a convolution joins, norms behind both blocks, three axes over half a head."""

from transformers import Glm46VConfig, Glm46VForConditionalGeneration, Glm46VImageProcessorPil, Glm46VProcessor

from btp.models.loading.processor_without_video import without_videos
from families import kit

PATCH = 4  # eight pixels a side become a visual token
START, END, IMAGE, VIDEO = "<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>"
FILM = "<|begin_of_video|>", "<|end_of_video|>"


def build():
    """Two layers in the tower."""
    tokenizer = kit.tokenizer(START, END, *FILM, image_token=IMAGE, video_token=VIDEO)
    named = {"image": IMAGE, "video": VIDEO, "image_start": START, "image_end": END}
    named |= {"video_start": FILM[0], "video_end": FILM[1]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": PATCH}
    config = Glm46VConfig(
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
        text_config=kit.TEXT | ends | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision | {"out_hidden_size": 32, "image_size": 24},
    )
    size = {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 48 * 48}
    pictures = Glm46VImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    template = kit.chat(START + IMAGE + END)
    return Glm46VForConditionalGeneration(config), without_videos(Glm46VProcessor)(
        pictures, tokenizer, chat_template=template
    )


SIZES = kit.Picture(24, 16), kit.Picture(16, 40), kit.Picture(32, 32)
FAMILIES = (kit.Family("glm46v", build, SIZES),)
