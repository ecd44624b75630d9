"""BTP's released setting against its released code: functions, stages in order, whole decoders with a decode step.

The released LLaVA code keeps a token twice that two rules choose at stage 2, and all of a union that exceeds k at
stage 1. Here tokens are distinct and k of them, so what is compared is the union in front of either fault. Handlers
are tried on cases made by `released_btp` too, of every kind: most kinds are not among the recorded ones.
"""

import re
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from pruners.hand import CONF, tokens
from yaml import safe_load

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.ops.farthest_point import farthest_points
from btp.ops.grid_spread import spatial_seeds
from btp.ops.rebalance import rebalanced_top
from btp.schedules.place import place_stages
from parity import released_btp as plain
from parity.decoder import play, tiny
from parity.plain_llama import part, recorded

ARRAYS, FACTS = recorded("btp")
CASES = FACTS["cases"]
LAYERS = {"llava15": 32, "qwen25vl": 28}
TOTAL, GRID = 576, (24, 24)  # of LLaVA
YAML = safe_load((CONF / "pruner" / "btp.yaml").read_text())
RUNS = {"e2e": None, "e2e_late": {14: (3, 192), 22: (0, 0)}, "e2e_two": {3: (1, 288), 14: (3, 96), 22: (0, 0)}}


def released(model):
    """The method and its stages, as `schedule=paper schedule.setting=released` has them."""
    found = YAML["published"][model]["released"]
    method = instantiate(YAML["method"] | found["method"])
    schedule = Schedule.from_config(place_stages(found["stages"], LAYERS[model]))
    method.check(schedule)
    return method, schedule


def on_grid(rows, columns):
    """[rows * columns, 3]."""
    at = torch.arange(rows * columns)
    return torch.stack([torch.zeros_like(at), at // columns, at % columns], dim=1)


def stages_of(arrays, case):
    """Numbers of the stages that a case has."""
    return sorted({int(found[1]) for key in arrays if (found := re.match(rf"{case}/stage(\d)/", key))})


def model_of(case):
    """Whose code made a case."""
    return "qwen25vl" if case.startswith("qwen") else "llava15"


def hold_stage(arrays, facts, case, number):
    """One stage: attention, scratch and seed, and the farthest points behind them; alone and in a batch."""
    official = part(arrays, f"{case}/stage{number}")
    k, N = facts[f"stage{number}"]["k"], len(official["hidden"])
    method, schedule = released(model_of(case))
    at = schedule[number - 1]
    whole = facts.get("N", TOTAL)
    if case.startswith("small"):
        at, whole = replace(at, keep=k), 2 * N
    assert at.count(whole) == k
    grid = on_grid(facts["rows"], facts["columns"]) if "rows" in facts else on_grid(*GRID)
    seen = tokens(N, N, total=(whole, whole))
    coord = (grid if len(grid) == N else torch.zeros(N, 3, dtype=torch.long)).expand(2, -1, -1)
    seen = replace(seen, hidden=official["hidden"].float().expand(2, -1, -1), coord=coord)
    (signal,) = method.needs(at)
    assert signal.form == ("probs" if model_of(case) == "qwen25vl" else "logits")
    values = Signals({signal: official["attention"].float()[None, :, None].expand(2, -1, -1, -1)})
    ours = method.select(seen, values, at).keep.tolist()
    assert ours[0] == ours[1]
    kept = official["kept_rel"].tolist()
    if "kept_place" in official:
        assert official.get("place", torch.arange(N))[official["kept_rel"]].tolist() == official["kept_place"].tolist()

    said = method.explain(seen, values, at)
    rules = {n: set(v[0].nonzero().flatten().tolist()) for n, v in said.items() if v.dtype == torch.bool}
    union = set().union(*(mine for name, mine in rules.items() if name != "diversity"))
    if len(set(kept)) > k:  # a union too large: seeds in front of which there is no room
        seeds = spatial_seeds(coord[:1], torch.zeros(1, N, dtype=torch.long), [whole // 4], "manhattan")[0]
        first = union - rules.get("spatial seed", set())
        assert set(kept) == first | set(seeds)
        assert set(ours[0]) == first | set([i for i in seeds if i not in first][: k - len(first)])
        return
    repeats = len(kept) - len(set(kept))
    order = farthest_points(seen.hidden[:1], torch.tensor([sorted(union)]), k, ordered=True)[0].tolist()
    assert sorted(order) == ours[0]
    assert set(kept) == set(order[: k - repeats])
    if number == 2 and model_of(case) == "llava15":
        assert repeats == int(0.1 * k) + int(0.9 * k) - len(union)
    else:
        assert repeats == 0
        assert kept == ours[0]


def hold_lengths(facts, case):
    """Rows of every layer, as the published stages have them."""
    _, schedule = released(model_of(case))
    total = facts.get("N", TOTAL)
    alive = [total] * len(facts["lengths"])
    for stage in schedule:
        alive[stage.site.layer :] = [stage.count(total)] * (len(alive) - stage.site.layer)
    text = facts["lengths"][0] - total
    assert [n + text for n in alive] == facts["lengths"]


def hold_seed(arrays, case):
    """Places of a grid, in the order of picking."""
    rows, columns, count = map(int, re.fullmatch(r"seed_(\d+)x(\d+)_(\d+)", case).groups())
    image = torch.zeros(1, rows * columns, dtype=torch.long)
    picks = spatial_seeds(on_grid(rows, columns)[None], image, [count], "manhattan")[0]
    assert list(picks) == arrays[case].tolist()


def hold_attention(arrays, facts, case):
    """The re-balanced choice, in its order."""
    scores = arrays[f"{case}/attention"].float().mean(0)[None]
    assert scores.shape[1] == facts["n"]
    picks = rebalanced_top(scores, [facts["select"]], [facts["candidates"]], [facts["split"]])
    assert picks[0].tolist() == arrays[f"{case}/picked"].tolist()


def hold_diversity(arrays, facts, case):
    """The farthest points behind the seeds, in the order of picking."""
    x = arrays[f"{case}/hidden"].float()[None]
    seeds = arrays.get(f"{case}/seeds", torch.empty(0, dtype=torch.long)).long()
    assert x.shape[1] == facts["n"]
    picked = arrays[f"{case}/picked"].tolist()
    assert len(picked) == len(seeds) + facts["more"]
    assert picked[: len(seeds)] == seeds.tolist()
    ours = farthest_points(x, seeds[None], len(picked), ordered=True)[0].tolist()
    assert ours[len(seeds) :] == picked[len(seeds) :]


def hold_run(arrays, facts, case, attention="sdpa"):
    """Lengths, caches, positions and rows of every stage; states of prefill and step where no token stands twice."""
    official, cuts = part(arrays, case), RUNS[case]
    method, schedule = released("llava15")
    if cuts is not None:  # some stages are off, the last of attention keeps a third of what came to it
        third = replace(schedule[2], keep=cuts[14][1])
        schedule = Schedule((*(schedule[:1] if 3 in cuts else ()), third, schedule[3]))
    embeds = arrays["e2e/inputs_embeds"].float()[None]
    first = plain.FIRST
    coord = torch.full((1, embeds.shape[1], 3), -1)
    coord[0, first : first + TOTAL] = on_grid(*GRID)
    host = tiny(part(arrays, "w"), heads=4, eps=1e-6, attention=attention)
    ran = play(host, [(first, first + TOTAL)], embeds, method, schedule, [facts.get("decode_token", 17)], coord=coord)

    assert ran.prefill.lengths == official["layer_lengths"].tolist() == facts["lengths"]
    assert ran.prefill.slots == official["kv_lengths"].tolist()
    assert ran.steps[0].slots == official["kv_lengths_after_decode"].tolist()
    assert set(ran.step_positions.flatten().tolist()) == {facts["decode_position"]} == {embeds.shape[1]}
    rows = torch.arange(embeds.shape[1])
    twice = False
    for stage, kept in zip(schedule, ran.kept, strict=True):
        layer = stage.site.layer
        rows = rows[official[f"rows_layer{layer}"]]
        assert torch.equal(official[f"positions_layer{layer}"], rows)
        image = [i - first for i in rows.tolist() if first <= i < first + TOTAL]
        assert len(set(image)) == facts["distinct_image"][str(layer)]
        if not twice:
            assert set(image) <= set(kept)  # all of them, but for what comes in place of a token kept twice
            assert len(kept) - len(set(image)) == len(image) - len(set(image))
        twice = twice or len(set(image)) < len(image)
        if not twice:
            assert ran.prefill.positions[layer][0].tolist() == rows.tolist()
    assert twice == (cuts is None)
    if not twice:
        assert (ran.prefill.hidden[0] - official["last_hidden_state"]).abs().max() < 1e-4
        assert (ran.step_hidden[0] - official["decode_last_hidden_state"]).abs().max() < 1e-4


STAGED = [(c, n) for c in CASES if not c.startswith("e2e") for n in stages_of(ARRAYS, c)]
NAMED = sorted({key.split("/")[0] for key in ARRAYS})


def named(kind):
    """Recorded cases of a kind."""
    return [case for case in NAMED if re.fullmatch(kind, case)]


@pytest.mark.parametrize(("case", "number"), STAGED)
def test_stage(case, number):
    """What the released code kept, stage by stage."""
    hold_stage(ARRAYS, CASES[case], case, number)


@pytest.mark.parametrize("case", [case for case, number in STAGED if "lengths" in CASES[case] and number == 1])
def test_lengths(case):
    """Sites and counts of the released setting are those of the released code."""
    hold_lengths(CASES[case], case)


@pytest.mark.parametrize("case", named(r"seed_.*"))
def test_seed(case):
    """The spatial seed alone."""
    hold_seed(ARRAYS, case)


@pytest.mark.parametrize("case", named(r"attn\d+"))
def test_attention(case):
    """The choice by attention alone."""
    hold_attention(ARRAYS, CASES[case], case)


@pytest.mark.parametrize("case", named(r"div\d+"))
def test_diversity(case):
    """The farthest points alone."""
    hold_diversity(ARRAYS, CASES[case], case)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", [case for case in RUNS if f"{case}/layer_lengths" in ARRAYS])
def test_run(case, attention):
    """Whole decoders."""
    hold_run(ARRAYS, CASES[case], case, attention)


def test_every_recorded_case_is_held():
    """Each belongs to one of the kinds above."""
    held = {case for case, _ in STAGED} | {"w", *RUNS}
    held |= {case for kind in (r"seed_.*", r"attn\d+", r"div\d+") for case in named(kind)}
    assert set(NAMED) <= held


RANDOM = {name: torch.Generator().manual_seed(seed) for seed, name in enumerate(("chain", "qwen", "run", "parts"))}


def made(name, arrays):
    """Arrays under the name of a case."""
    return {f"{name}/{key}": value for key, value in arrays.items()}


def test_made_stages():
    """Chains of both codes, stages on few tokens, and a union too large at stage 1."""
    arrays, facts = plain.chain(plain.llava, (288, 144, 48), TOTAL, RANDOM["chain"])
    lengths = [623] * 3 + [335] * 3 + [191] * 8 + [95] * 8 + [47] * 2
    assert len(set(arrays["stage2/kept_rel"].tolist())) < 144, "the fault is there to be seen"
    for number in (1, 2, 3):
        hold_stage(made("chain9", arrays), facts, "chain9", number)
    hold_lengths(facts | {"lengths": lengths}, "chain9")
    for rows, columns in ((14, 20), (9, 13)):
        N = rows * columns
        shape = {"rows": rows, "columns": columns, "N": N}
        counts = (N // 2, N // 4, N // 8)
        arrays, facts = plain.chain(plain.qwen, counts, N, RANDOM["qwen"], "probs", **shape)
        for number in (1, 2, 3):
            hold_stage(made("qwen9", arrays), facts, "qwen9", number)
        alive = [N] * 3 + [counts[0]] * 3 + [counts[1]] * 9 + [counts[2]] * 7 + [0] * 6
        hold_lengths(facts | {"lengths": [n + 24 for n in alive]}, "qwen9")
    for number, alive, k in ((2, 60, 30), (2, 18, 9), (3, 60, 20), (3, 37, 12)):
        x = torch.randn(alive, 8, generator=RANDOM["chain"]).half()
        attention = torch.randn(3, alive, generator=RANDOM["chain"]).half()
        case = plain.stage_case(plain.llava, number, k, x, attention)
        name = f"small{number}c"
        hold_stage(made(f"{name}/stage{number}", case), {f"stage{number}": {"k": k}}, name, number)


def test_made_union_too_large():
    """86 farthest points, 86 by attention and 144 seeds, no two the same: 316, of which the last seeds give way."""
    seeds = plain.spread(*GRID, 144)
    free = [i for i in range(288) if i not in seeds]
    random, logits = RANDOM["parts"], torch.randn(4, TOTAL, generator=RANDOM["parts"])
    logits[:, free[:86]] += 40
    x = torch.randn(TOTAL, 16, generator=random) * 0.02 + torch.ones(16)  # all alike
    far = [i for i in range(288, TOTAL) if i not in seeds][:86]
    x[far] = torch.randn(86, 16, generator=random)
    arrays = plain.stage_case(plain.llava, 1, 288, x.half(), logits.half())
    assert len(arrays["kept_rel"]) > 288
    hold_stage(made("overfull/stage1", arrays), {"stage1": {"k": 288}}, "overfull", 1)


def test_made_parts():
    """Functions alone."""
    random = RANDOM["parts"]
    for rows, columns, count in ((4, 4, 4), (6, 5, 10), (1, 17, 6)):
        name = f"seed_{rows}x{columns}_{count}"
        hold_seed({name: torch.tensor(plain.spread(rows, columns, count))}, name)
    for n, select, candidates, split in ((288, 129, 193, 144), (20, 6, 9, 10), (20, 4, 12, 10)):
        facts = {"n": n, "select": select, "candidates": candidates, "split": split}
        attention = torch.randn(3, n, generator=random).half()
        picked = plain.attended(attention.float().mean(0), select, candidates, split)
        hold_attention(made("attn9", {"attention": attention, "picked": torch.tensor(picked)}), facts, "attn9")
    for n, seeds, more in ((48, (), 12), (48, (30, 2, 41, 7), 12), (144, (5,), 40)):
        x = torch.randn(n, 8, generator=random).half()
        arrays = {"hidden": x, "picked": torch.tensor([*seeds, *plain.farthest(x, seeds, more)])}
        arrays |= {"seeds": torch.tensor(seeds)} if seeds else {}
        hold_diversity(made("div9", arrays), {"n": n, "more": more}, "div9")


@pytest.fixture(scope="module")
def runs():
    """The three whole runs on a decoder made here."""
    w = plain.weights(RANDOM["run"])
    embeds = torch.randn(plain.FIRST + plain.IMAGE + plain.TEXT, 32, generator=RANDOM["run"]).half()
    arrays = made("w", w) | {"e2e/inputs_embeds": embeds}
    for name, cuts in RUNS.items():
        cuts = cuts or {3: (1, 288), 6: (2, 144), 14: (3, 48), 22: (0, 0)}
        arrays |= made(name, plain.run(w, embeds, cuts))
    return arrays


@pytest.mark.parametrize("case", RUNS)
def test_made_runs(runs, case):
    """Whole decoders, their caches, and the step behind them."""
    rows, distinct = torch.arange(plain.FIRST + TOTAL + plain.TEXT), {}
    for layer in (3, 6, 14, 22):
        rows = rows[runs.get(f"{case}/rows_layer{layer}", torch.arange(len(rows)))]
        distinct[str(layer)] = len({i for i in rows.tolist() if plain.FIRST <= i < plain.FIRST + TOTAL})
    facts = {"lengths": runs[f"{case}/layer_lengths"].tolist(), "decode_position": 623, "distinct_image": distinct}
    hold_run(runs, facts | {"decode_token": plain.WORD}, case)


def test_the_paper_s_setting_has_no_rounds_from_scratch():
    """Neither rounds from scratch nor a surplus stand in it, and it keeps other tokens."""
    for model, table in YAML["published"].items():
        assert not [s for s in table["paper"]["stages"] if {"scratch", "surplus"} & set(s)], model
    paper, found = YAML["published"]["llava15"]["paper"]["stages"][0], part(ARRAYS, "chain0/stage1")
    seen = replace(tokens(TOTAL), hidden=found["hidden"].float()[None], coord=on_grid(*GRID)[None])
    at = Stage("llm.layer.3", 288, settings={"balance": paper["balance"]})
    values = Signals({Signal("attention", "llm.layer.2", "last", "logits"): found["attention"].float()[None, :, None]})
    ours = instantiate(YAML["method"]).select(seen, values, at).keep[0].tolist()
    assert len(set(ours) & set(found["kept_rel"].tolist())) < 260
