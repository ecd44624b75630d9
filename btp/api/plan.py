"""A method by name on a loaded model: what the yamls say, the budget solved, the stages calibrated where it asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from btp.api.hosts import device_words, loaded_of, model_words
from btp.cli.composed import budget_word, composed, word
from btp.core.host import Host
from btp.runner.arms import Arm, build_arms
from btp.runner.calibration.sources import Finder
from btp.runner.devices import Machine
from btp.schedules.meet import Facts, facts_of, pictures_of
from btp.schedules.plan import Sources
from btp.tasks.files.decode_image import open_picture
from btp.tasks.shown import short

Pictures = str | Path | Sequence[Image.Image | str | Path]
GIVEN = "given"  # identity of the model: what is found for it is kept in a folder of its own
PROMPT = 16  # words behind the picture of an example, which budgets do not depend on


def words_of(
    method: str | Sequence[str],
    schedule: str | None,
    budget: float | None,
    settings: dict[str, Any],
    overrides: Iterable[str],
) -> list[str]:
    """The words of the command line that say the same.

    Raises:
        ValueError: an argument is of a kind that no word can have.
    """
    if not isinstance(method, str) and not _texts(method):
        raise ValueError(
            f"method is {short(repr(method))}. Pass the name of a yaml (btp.methods()), a list of several, or a "
            "Pruner of your own, an instance, with its Schedule."
        )
    overrides = [overrides] if isinstance(overrides, str) else overrides
    overrides = list(overrides) if isinstance(overrides, Iterable) else overrides
    if not _texts(overrides):
        raise ValueError(f'overrides is {short(repr(overrides))}. Pass words of the command line, as ["stages=2"].')
    words = [f"pruner={method}" if isinstance(method, str) else word("pruner", method)]
    words += [] if budget is None else [budget_word(budget)]
    words += [] if schedule is None else [word("schedule", schedule)]
    words += [word(f"pruner.method.{name}", value) for name, value in settings.items()]
    return [*words, *overrides]


def _texts(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(one, str) for one in given)


def arm_for(
    host: Host,
    words: list[str],
    calibration: Pictures | None,
    processor: Any,
    tokens: int | None,
) -> Arm:
    """The method's arm on a model, each prompt solved for its own number of visual tokens.

    Args:
        words: Words of the method, its schedule and its budget.
        calibration: pictures, for stages or settings that are found by looking at some.
        processor: makes inputs of them; None takes that of the checkpoint which the model was loaded from.
        tokens: visual tokens of a usual prompt; None takes those of the picture in the model's yaml.

    Raises:
        ValueError: as the command line says; or pictures are needed and missing.
    """
    chosen, name = model_words(host)
    with pictures_words(calibration) as mine, TemporaryDirectory(prefix="btp-") as store:
        config = composed([*chosen, *device_words(host), *mine, *words], "btp.attach: ")
        config["controls"] = None
        config["model"] = {**config["model"], "name": name, "weights": "pretrained"}
        facts = _facts(host, config["model"]["example"], tokens)
        arms, _ = build_arms(config, facts, _sources(host, config, facts, bool(mine), processor, Path(store)))
    arm = next((arm for arm in arms if arm.role == "method"), arms[0])
    if arm.picture != "full":
        raise ValueError(f"{arm.name} changes the pictures themselves, which attach does not see. Use btp.evaluate.")
    return arm


def _facts(host: Host, example: dict[str, Any], tokens: int | None) -> Facts:
    """Of a prompt with one picture; every prompt is solved anew for what it holds."""
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ValueError(f"tokens is {tokens!r}. Pass the visual tokens of a usual prompt, a whole number from 1 on.")
    if tokens is not None:
        return facts_of(host, [tokens], unequal=True)
    try:
        inputs = host.example(1, PROMPT, **example)  # type: ignore[attr-defined]
    except ValueError as error:
        raise ValueError(f"{error} Or pass tokens=N, the visual tokens of a usual prompt.") from error
    return facts_of(host, [int(host.visual_mask(inputs)[0].sum())], pictures_of(inputs), unequal=True)  # type: ignore[attr-defined]


def _sources(host: Host, config: dict[str, Any], facts: Facts, pictured: bool, processor: Any, store: Path) -> Sources:
    """Where stages come from that the yaml does not hold: a calibration on the pictures, a search on them."""

    def finder() -> Finder:
        if not pictured:
            raise ValueError(
                f"pruner {config['pruner']['name']!r} looks at pictures to find its stages or settings. Pass "
                'calibration=[picture, ...] or a folder of them, or schedule="uniform" or "paper"; '
                'overrides=["pruner.strategy=given"] takes settings as its yaml has them.'
            )
        machine = Machine(config["trainer"], store)
        return Finder(config, loaded_of(host, processor), GIVEN, store, store, machine, facts)

    def searched(pruner: Any) -> Any:
        parts = (pruner.get("parts") or {"": pruner}).values()
        asks = any("search" in (part.get("layer"), part.get("strategy")) for part in parts)
        return finder().searched(pruner) if asks else pruner

    return Sources(lambda: finder().calibrated(), searched)


@contextmanager
def pictures_words(given: Pictures | None) -> Iterator[list[str]]:
    """Words for a calibration on these pictures, which lie in a folder meanwhile."""
    if given is None:
        yield []
        return
    if isinstance(given, str | Path):
        yield ["calibration=folder", word("calibration.path", str(given)), *_counted(Path(given))]
        return
    given = [given] if isinstance(given, Image.Image) else given
    if not isinstance(given, Sequence) or not all(isinstance(one, Image.Image | str | Path) for one in given):
        raise ValueError(f"calibration is {short(repr(given))}. Pass pictures or their paths, or a folder of them.")
    if not len(given):
        raise ValueError("calibration holds no picture. Pass some pictures, or a folder of them.")
    if lost := [one for one in given if not isinstance(one, Image.Image) and not Path(one).is_file()]:
        raise ValueError(f"calibration names {lost[0]}, but there is no such file. Correct the path.")
    with TemporaryDirectory(prefix="btp-") as folder:
        for number, one in enumerate(given):
            picture = one if isinstance(one, Image.Image) else open_picture(Path(one))
            picture.convert("RGB").save(Path(folder) / f"{number:05}.png")
        yield ["calibration=folder", word("calibration.path", folder), f"calibration.samples={len(given)}"]


def _counted(folder: Path) -> list[str]:
    """As many samples as there are, where these are fewer than the yaml draws."""
    found = sum(1 for path in folder.rglob("*") if path.suffix.lower() in Image.registered_extensions())
    return [f"calibration.samples={found}"] if 0 < found < 64 else []
