"""Video-MME (Fu et al. 2024, arXiv:2405.21075): three questions about each of 900 videos of 11 seconds to an hour."""

from __future__ import annotations

from btp.tasks.videos.options import bare_options
from btp.tasks.videos.table import Layout, VideoTable


class VideoMME(VideoTable):
    """Reads its table; `ability` is task_type, duration, domain or sub_category."""

    layout = Layout(
        title="Video-MME",
        videos="VIDEOID.mp4 (or .mkv, or folders of frames)",
        source="lmms-lab/Video-MME",
        identity="question_id",
        video="videoID",
        choices=lambda entry: bare_options(entry.texts("options")),
        answer=lambda entry: str(entry["answer"]).strip(),
        abilities=("task_type", "duration", "domain", "sub_category"),
        duration="duration",
    )
