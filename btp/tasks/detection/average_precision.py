"""Average precision as COCO defines it (Lin et al. 2014, arXiv:1405.0312), by pycocotools, in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from btp.tasks.detection.matching import Found

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # in the order of COCOeval.stats


def average_precision(truth: Mapping[str, Any], found: Sequence[Sequence[Found]]) -> dict[str, float]:
    """AP over IoUs of .5 to .95, at .5 and at .75, and by area: below 32², up to 96², above (in pixels).

    Args:
        truth: annotations in COCO's format (images, categories, annotations; ids of annotations from 1 on).
        found: boxes of each of its images, in their order, by the names of its categories.

    Returns:
        In [0, 1]; a size of which there is no object has none. {} where no object is labelled.
    """
    if not truth["annotations"]:
        return {}
    categories = {c["name"]: c["id"] for c in truth["categories"]}
    results = []
    for image, boxes in zip(truth["images"], found, strict=True):
        wide, high = image["width"], image["height"]
        for name, score, x0, y0, x1, y1 in boxes:
            bbox = [x0 * wide, y0 * high, (x1 - x0) * wide, (y1 - y0) * high]
            results.append({"image_id": image["id"], "category_id": categories[name], "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = dict(truth)
        known.createIndex()
        said = known.loadRes(results) if results else COCO()
        if not results:
            said.dataset = {**truth, "annotations": []}
            said.createIndex()
        run = COCOeval(known, said, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: float(value) for name, value in zip(NAMES, run.stats, strict=False) if value >= 0}
