"""What a recorded file may hold, by kind of case: an array or a case that no handler reads fails by its name."""

import re


def check_kinds(file, arrays, facts, kinds, others=None):
    """Fail where a file or its json holds what no handler takes, or a case lacks an array of its kind.

    Args:
        file: its name, for the message.
        arrays: names of the arrays in the npz.
        facts: the json.
        kinds: pattern of a case's name -> its arrays, as they end behind `_`. A kind without cases of its own (`s_*`)
            is the pattern of its prefix, and its arrays are patterns.
        others: pattern of names that another handler reads.
    """
    described = [*arrays, *facts.get("arrays", ())]
    owned = {name: re.match(others, name) for name in described} if others else {}
    lost = sorted({n for n in described if not owned.get(n) and not any(_reads(n, *kind) for kind in kinds.items())})
    known = "; ".join(f"{kind}: {', '.join(ends)}" for kind, ends in kinds.items())
    assert not lost, (
        f"{file}: no handler reads {', '.join(lost)}. Known are {known}. Correct the names, or write a handler beside "
        "the others."
    )
    cases = [case["case"] for case in facts.get("cases", ())]
    strange = [c for c in cases if not any(re.fullmatch(kind, c.removesuffix("_*")) for kind in kinds)]
    strange = [c for c in strange if not (others and re.match(others, c))]
    assert not strange, f"{file}: its json lists {', '.join(strange)}, of no kind that a handler takes: {list(kinds)}."
    for case in cases:
        ends = next((ends for kind, ends in kinds.items() if re.fullmatch(kind, case.removesuffix("_*"))), ())
        plain = [end for end in ends if re.fullmatch(r"\w+", end)]
        have = [end for end in plain if f"{case.removesuffix('_*')}_{end}" in arrays]
        lacks = [end for end in plain if end not in have]
        assert not have or not lacks, f"{file}: case {case} has {', '.join(have)}, but lacks {', '.join(lacks)}."


def _reads(name, kind, ends):
    return any(re.fullmatch(f"(?:{kind})_(?:{end})", name) for end in ends)
