"""MVBench (Li et al. 2023, arXiv:2311.17005): twenty kinds of questions about short videos of eleven data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.local import Place
from btp.tasks.files.video_frames import Sampling, footage
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY, letter

FOLDERS = {  # of each kind's videos
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
FRAMES_RATE = 3.0  # a second, of episodic_reasoning's folders of frames


@dataclass(frozen=True)
class MVBench:
    """Reads json/KIND.json of each kind; questions that say so are about a part of their video.

    Attributes:
        path: folder with json and the videos' folder.
        videos: folder of the videos below it.
        kinds: Kinds that are asked; null asks all twenty.
        frames, fps, folder_fps: see `btp.tasks.files.video_frames.Sampling`.
    """

    path: str
    videos: str
    kinds: Sequence[str] | None
    frames: int
    fps: float | None
    folder_fps: float

    def read(self) -> list[Sample]:
        """All questions, kind by kind."""
        unknown = [kind for kind in self.kinds or () if kind not in FOLDERS]
        if unknown:
            raise ValueError(f"task.dataset.reader.kinds holds {unknown}. Choose from: {', '.join(FOLDERS)}.")
        layout = f"json/KIND.json for {len(FOLDERS)} kinds of questions, and {self.videos}/star, clevrer, ..."
        place = Place(Path(self.path), "MVBench", layout, "OpenGVLab/MVBench on the Hugging Face hub")
        found = []
        for kind in self.kinds or FOLDERS:
            rate = FRAMES_RATE if kind == "episodic_reasoning" else self.folder_fps
            sampling = Sampling(self.frames, self.fps, rate)
            for number, entry in enumerate(place.entries(f"json/{kind}.json", "task.dataset.reader.kinds")):
                name, choices = f"{kind}-{number:04d}", entry.texts("candidates")
                span = (float(entry["start"]), float(entry["end"])) if "start" in entry and "end" in entry else None
                video = place.root / self.videos / FOLDERS[kind] / str(entry["video"])
                found.append(
                    Sample(
                        id=name,
                        images=(),
                        clips=(footage(name, video, sampling, KEY, span),),
                        question=str(entry["question"]),
                        reference=letter(str(entry["answer"]), choices),
                        ability=kind,
                        choices=choices,
                    )
                )
        return found
