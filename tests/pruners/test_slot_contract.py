"""Every cache method that has a yaml: what it keeps is sound, and the same in a batch as alone."""

from dataclasses import replace

import pytest
import torch
from test_contract import ALL, build, load

from btp.core.cache_pruner import CachePruner, scope_of
from btp.core.schedule import Schedule
from btp.core.signals import CACHED, Signals
from btp.core.slots import Slots, check_slots, is_sound
from btp.engine.cache.decide_eviction import ask
from btp.engine.hooks.deferred_checks import Doubts

HEADS, GROUPS, SIZE = 2, 2, 8
NAMES = [name for name in ALL if isinstance(build(name), CachePruner)]
LENGTHS = (70, 61, 40)
KEEP = 32  # holds every window and page of the yamls


def stages(name, keep=KEEP):
    """The stages of the yaml at one layer, with a number in place of the budget's."""
    found = Schedule.from_config([stage | {"keep": keep} for stage in load(name)["schedule"]])
    return [replace(s, site=s.site.of_layer(1) if s.site.every_layer else s.site) for s in found]


def slots(*lengths, prefill=True, carried=None, generator=0):
    """Prompts of these lengths, padded in front; or, behind them, one step."""
    n, B = max(lengths), len(lengths)
    place = torch.arange(n) - (n - torch.tensor(lengths)[:, None])
    position = place.clamp(min=-1)[:, None].expand(B, HEADS, n)
    length = torch.tensor(lengths)
    return Slots(
        position=position,
        length=length,
        prompt=length - int(not prefill),
        layer=1,
        layers=4,
        groups=GROUPS,
        new=n if prefill else 1,
        prefill=prefill,
        due=True,
        carried=carried or {},
        host_total=tuple(length.tolist()),
        host_alive=tuple(lengths),
        host_length=tuple(lengths),
    )


def signals(pruner, seen, stage, generator=1):
    """Random values for everything the method declares."""
    random = torch.Generator().manual_seed(generator)
    B, H, n = seen.position.shape
    values, valid = {}, {}
    for signal in dict.fromkeys(pruner.needs(stage)):
        if signal.kind == "attention":
            rows = signal.window or 1
            raw = torch.randn(B, H * GROUPS, rows, n, generator=random)
            hidden = ~seen.valid.repeat_interleave(GROUPS, 1)[:, :, None]
            values[signal] = raw.masked_fill(hidden, -torch.inf).softmax(-1)
            if signal.rows == "window":
                valid[signal] = torch.ones(B, rows, dtype=torch.bool)
        else:
            values[signal] = torch.randn(B, H, n, SIZE, generator=random)
    return Signals(values, valid)


def row(b, seen, values, carried=None):
    """Row b alone, without padding."""
    n = seen.host_length[b]
    alone = slots(n, prefill=seen.prefill, carried={k: x[b : b + 1, :, -n:] for k, x in seen.carried.items()})
    cut = {s: x[b : b + 1, ..., -n:] if s.kind == "attention" else x[b : b + 1, :, -n:] for s, x in values.items()}
    valid = {s: values.rows_valid(s)[b : b + 1] for s in values if s.rows == "window"}
    return alone, Signals(cut, valid)


def answers(name):
    """Stage, slots, signals and answer of each stage: behind the prompt, and in the step behind it."""
    pruner = build(name)
    for stage in stages(name):
        seen = slots(*LENGTHS)
        values = signals(pruner, seen, stage)
        first = pruner.evict(seen, values, stage)
        yield stage, seen, values, first
        if stage.phase != "prefill":
            carried = {k: x.expand(-1, HEADS, -1) for k, x in first.carried.items()}
            step = slots(*LENGTHS, prefill=False, carried=carried)
            values = signals(pruner, step, stage, 2)
            yield stage, step, values, pruner.evict(step, values, stage)


def kept(selection, seen, b):
    """Positions that row b keeps, per head."""
    if selection.keep is None:
        return [sorted(p for p in head if p >= 0) for head in seen.position[b].tolist()]
    keep = selection.keep[b].expand(HEADS, -1)
    return [[int(seen.position[b, h, i]) for i in keep[h].tolist() if i >= 0] for h in range(HEADS)]


@pytest.mark.parametrize("name", NAMES)
def test_selection_is_sound_and_the_same_alone(name):
    """Ascending, unique, valid, exactly as many as asked, what is protected among them; rows do not see each other."""
    pruner = build(name)
    for stage, seen, values, selection in answers(name):
        assert selection.counts is None or pruner.adaptive, f"{name} decides its own counts: write `adaptive = True`"
        counts = selection.counts or seen.keep_counts(stage)
        check_slots(selection, seen, counts, name, stage.site)
        assert selection.keep is None or is_sound(selection.keep, torch.tensor(counts), seen)
        for b, length in enumerate(LENGTHS):
            alone, its = row(b, seen, values)
            mine = kept(selection, seen, b)
            assert mine == kept(pruner.evict(alone, its, stage), alone, 0), (
                f"{name} keeps other slots of row {b} in a batch than alone: leave padding out by slots.valid"
            )
            recent, first = (stage.settings.get(key, 0) for key in ("recent", "first"))
            recent = int(recent * counts[b]) if isinstance(recent, float) else recent
            for head in mine:
                assert len(head) == counts[b]
                assert {*range(first), *range(length - recent, length)} <= set(head)


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything(name):
    """Where the budget is not reached, and where nothing is due, every slot stays."""
    pruner = build(name)
    for stage in stages(name, 100):
        for due in (True, False):
            seen = replace(slots(9, 6), due=due)
            answer = ask(pruner, stage, seen, signals(pruner, seen, stage), Doubts())
            assert answer.counts == (9, 6)
            assert torch.equal(answer.stay.expand_as(seen.valid), seen.valid)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_refused(name, value):
    """In any signal, named with the method and the row."""
    pruner = build(name)
    for stage in stages(name):
        seen = slots(*LENGTHS)
        for signal, x in (values := signals(pruner, seen, stage)).items():
            spoilt = x.clone()
            spoilt[1, ..., -1 if signal.kind == "attention" else slice(None)] = value
            valid = {s: values.rows_valid(s) for s in values if s.rows == "window"}
            if signal.rows == "window":
                spoilt[1, ..., 20] = value  # the window's own columns do not rank
            word = "NaN" if value != value else "inf"
            message = (
                rf"{signal.kind} at llm.cache.1 .*holds {word}, which pruner '{pruner.name}' .* in row 1 of the batch"
            )
            with pytest.raises(ValueError, match=message):
                ask(pruner, stage, seen, Signals({**values, signal: spoilt}, valid), Doubts())


@pytest.mark.parametrize("name", NAMES)
def test_signals_are_those_of_its_own_cache(name):
    """Nothing else is there when it decides."""
    pruner = build(name)
    for stage in stages(name):
        assert stage.site.kind == "cache"
        assert scope_of(stage) == "all"
        for signal in pruner.needs(stage):
            assert signal.site == stage.site, f"{name} asks for {signal}: ask for Signal(kind, stage.site)"
            assert signal.rows in CACHED[signal.kind]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_ranks_by_is_shown(name):
    """So that the engine can refuse NaN; global randomness changes nothing."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append([])
        for _, seen, _, selection in answers(name):
            assert selection.scores is not None, f"{name}.evict hides what it ranks by: SlotSelection(scores=...)"
            found[-1].append([kept(selection, seen, b) for b in range(len(LENGTHS))])
    assert found[0] == found[1]
