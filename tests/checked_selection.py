"""All checks of a pruner's selection at once, as tests want them."""

from collections.abc import Sequence

from btp.core.keep import on_device
from btp.core.selection import Selection, check_shape, is_sound, unsound_message


def check_selection(
    selection: Selection, counts: Sequence[int], alive: Sequence[int], method: str, site: object
) -> None:
    """All checks at once, with a host sync: for tests and for tensors on the CPU.

    Raises:
        TypeError, ValueError: as `check_shape`; ValueError too where `is_sound` is false.
    """
    check_shape(selection, counts, method, site)
    device = selection.keep.device
    wanted, there = (on_device(tuple(n), device) for n in (counts, alive))
    if not bool(is_sound(selection.keep, wanted, there, selection.ordered)):
        raise ValueError(unsound_message(method, site))
