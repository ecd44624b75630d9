"""EgoSchema (Mangalam et al. 2023, arXiv:2308.09126): actions in three-minute egocentric videos."""

from __future__ import annotations

from btp.tasks.videos.options import bare_options
from btp.tasks.videos.table import Layout, VideoTable, numbered_answer


class EgoSchema(VideoTable):
    """Reads the subset of 500 questions whose answers are public."""

    layout = Layout(
        title="EgoSchema",
        videos="VIDEO_IDX.mp4",
        source="lmms-lab/egoschema (its Subset)",
        identity="question_idx",
        video="video_idx",
        choices=lambda entry: bare_options(entry.texts("option")),
        answer=numbered_answer("answer", "that of the Subset, whose 500 questions have one"),
    )
