"""Floating point operations of decode steps: rows that were computed, against the slots that they saw."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from btp.core.trace import Call, StepRecord
from btp.measure.architecture import Architecture
from btp.measure.flops import attention_signal, layer

Attended = list[list[tuple[int, int]]]


def attended(call: Call) -> Iterator[Attended]:
    """Of each decode step: per decoder layer and row of the batch, (rows computed, slots that they see).

    A slot that leaves in a step is still seen in it. Rows that came back are computed, and those that they see counted,
    as the newest token's.
    """
    layers = len(call.tokens)
    gone = [[0] * len(call.total) for _ in range(layers)]
    records = iter(call.evicted)
    record = next(records, None)
    for step in range(1, call.decode_steps + 1):
        while record is not None and record.step < step:
            left = gone[record.site.layer]
            for b, (before, after) in enumerate(zip(record.before, record.after, strict=True)):
                left[b] += before - after
            record = next(records, None)
        whole = [
            [(1, tokens + step - lost) for tokens, lost in zip(*pair, strict=True)]
            for pair in zip(call.tokens, gone, strict=True)
        ]
        yield _by_stages(whole, call.steps[step]) if call.steps else whole


def _by_stages(whole: Attended, records: Sequence[StepRecord]) -> Attended:
    """The same where stages of phase both said who goes on; their positions come off the device."""
    found = list(whole)
    for record in records:
        at = record.site.layer
        seen = [len(row) for row in record.seen_at]
        found[at:] = [list(zip(record.computed, seen, strict=True))] * (len(found) - at)
    return found


def decode(sizes: Architecture, call: Call, looked: Collection[int] = (), selection: float = 0.0) -> float | None:
    """Operations of one decode step over all rows of a batch, averaged over the call's; None where there was none.

    Counted as a prefill's are: real rows and slots, and the output head for the newest token of each row.

    Args:
        sizes: Sizes of the model.
        call: a prefill with decode steps behind it.
        looked: decoder layers whose attention of the newest token was computed once more in each step, for a pruner.
        selection: operations of the pruner in one step, counted apart.
    """
    if not call.decode_steps:
        return None
    head, total = 2 * len(call.total) * sizes.decoder.hidden * sizes.vocab, 0
    for layers in attended(call):
        total += sum(layer(sizes.decoder, rows, rows * seen) for row in layers for rows, seen in row)
        total += sum(attention_signal(sizes.decoder, [seen for _, seen in layers[at]], 1) for at in looked)
    return total / call.decode_steps + head + selection
