"""What lmms-eval finds under the entry point group lmms_eval.models: the model `btp`."""

from typing import Any


def manifests() -> list[Any]:
    """The manifest of `--model btp`, for tasks with chat turns and, with --force_simple, for all others."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]

    return [
        ModelManifest(
            model_id="btp",
            simple_class_path="btp.lmms_eval.model.Pruned",
            chat_class_path="btp.lmms_eval.model.PrunedChat",
        )
    ]
