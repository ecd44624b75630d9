"""LongVideoBench (Wu et al. 2024, arXiv:2407.15754): questions that refer to a moment of a video of up to an hour."""

from __future__ import annotations

from btp.tasks.files.entries import Entry
from btp.tasks.videos.table import Layout, VideoTable, numbered_answer

OPTIONS = 5  # option0 to option4, of which some may be N/A


def _options(entry: Entry) -> tuple[str, ...]:
    if "candidates" in entry:
        return entry.texts("candidates")
    every = [entry.get(f"option{i}") for i in range(OPTIONS)]
    return tuple(str(option) for option in every if option not in (None, "", "N/A"))


class LongVideoBench(VideoTable):
    """Reads its table, as json (candidates) or parquet (option0, ...).

    `ability` is question_category, duration_group, topic_category or level.
    """

    layout = Layout(
        title="LongVideoBench",
        videos=" with the videos that it names",
        source="longvideobench/LongVideoBench",
        identity="id",
        video="video_path",
        choices=_options,
        answer=numbered_answer("correct_choice", "the validation split"),
        abilities=("question_category", "duration_group", "topic_category", "level"),
        duration="duration_group",
    )
