"""METok against its released code (mnyuew/METok at b5abde1f), taken over by hand from the public text.

Events and pooled frames as one decision at the input; pruning between layers and what the cache holds for decoding.
Cases that are not in the recorded file are skipped; who has the full file drops it in.
"""

import pytest
import torch

from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.ops.video_events import cut_events, judge_events, neighbours
from btp.pruners.metok import EVENT, KEY, Asked, METok
from parity.plain_llama import recorded

ARRAYS, FACTS = recorded("metok")
CASES = {case["case"]: case for case in FACTS["cases"]}
ENTERED = [name for name in CASES if f"{name}_frames" in ARRAYS]
PRUNED = [name for name in CASES if f"{name}_attn0" in ARRAYS]


def method(**changed):
    """The method with the constants of the code."""
    settings = {"matcher": None, "events": 5, "key_events": 3, "key_frames": 6, "pool": "bilinear"}
    return METok(**settings | changed)


@pytest.mark.parametrize("name", ENTERED)
def test_events(name):
    """Cosines of neighbouring frames, the events that they cut, and which of them matter."""
    case, match = CASES[name], ARRAYS[f"{name}_frame_text_sim"].tolist()
    similarity = neighbours(ARRAYS[f"{name}_frames"])
    assert torch.allclose(similarity.float(), ARRAYS[f"{name}_adjacent_sim"].float(), atol=1e-6)
    spans = cut_events(similarity.tolist(), case["cuts"] + 1)
    assert [[first, end - 1] for first, end in spans] == ARRAYS[f"{name}_segments"].tolist()
    found = judge_events(spans, match, case["key_events"], case["key_frames_per_event"])
    assert found.match == pytest.approx(ARRAYS[f"{name}_event_max_sim"].tolist(), abs=1e-6)
    assert [i for i, key in enumerate(found.key) if key] == ARRAYS[f"{name}_key_events"].tolist()


@pytest.mark.parametrize("name", ENTERED)
def test_what_enters(name):
    """The pooled frames with a newline behind each event, in the order of the recorded sequence."""
    case, frames = CASES[name], ARRAYS[f"{name}_frames"]
    T, side = case["frames"], -(-case["grid_side"] // 2)
    coord = torch.cartesian_prod(torch.arange(T), torch.arange(side), torch.arange(side))
    coord = torch.cat([coord, torch.full((1, 3), -1)])[None]
    n = coord.shape[1]
    hidden = torch.zeros(1, n, case["dim"])
    hidden[0, -1] = ARRAYS[f"{name}_newline"]
    pruner = method(
        matcher=lambda question, clip, device: ARRAYS[f"{name}_frame_text_sim"],
        events=case["cuts"] + 1,
        key_events=case["key_events"],
        key_frames=case["key_frames_per_event"],
        pool=case["pool_mode"],
    )
    pruner.set_clips([Asked("", (range(T),))])
    stage = Stage("llm.input", 0.5, "renumber")
    signals = Signals({pruner.needs(stage)[0]: frames})
    found = pruner.select(tokens_of(hidden, coord), signals, stage)
    wanted, lengths = ARRAYS[f"{name}_visual_tokens"], ARRAYS[f"{name}_event_len"].tolist()
    event, matters = (found.carried[name].gather(1, found.keep)[0] for name in (EVENT, KEY))
    assert found.states[0].shape == wanted.shape
    assert torch.allclose(found.states[0], wanted, atol=1e-6)
    assert event.bincount().tolist() == lengths
    key = [bool(matters[event == e].all()) for e in range(len(lengths))]
    assert [e for e, mine in enumerate(key) if mine] == ARRAYS[f"{name}_key_events"].tolist()
    per_frame = ARRAYS[f"{name}_tokens_per_frame"]
    assert len(wanted) == int(per_frame.sum()) + len(lengths)


@pytest.mark.parametrize("name", PRUNED)
def test_pruning_and_cache(name):
    """Kept tokens of both pruning layers, none behind the third, and what each layer's cache holds afterwards."""
    case = CASES[name]
    start, behind, layers = case["visual_start"], case["text_after"], case["pruning_layers"]
    lengths, key, pruner = case["event_len"], case["key_idx"], method()
    event = torch.cat([torch.full((n,), e) for e, n in enumerate(lengths)])
    matters = torch.tensor([float(e in key) for e in event.tolist()])
    held, text = [case["seq_len"]], start + behind
    place = torch.arange(case["seq_len"])
    for turn, others in enumerate(("half", "none")):
        stage = Stage(f"llm.layer.{layers[turn]}", 0.5, settings={"ratio": case["ratio"], "others": others})
        attention = ARRAYS[f"{name}_attn{turn}"]
        count = len(event)
        signal = pruner.needs(stage)[0]
        seen = attention[None, :, start + count :, start : start + count]
        rows = Signals({signal: seen}, {signal: torch.ones(1, behind, dtype=torch.bool)})
        tokens = tokens_of(torch.zeros(1, count, 1), torch.zeros(1, count, 3, dtype=torch.long))
        tokens.carried.update({EVENT: event[None], KEY: matters[None]})
        kept = pruner.select(tokens, rows, stage).keep[0]
        stays = torch.cat([torch.arange(start), start + kept, torch.arange(start + count, len(place))])
        assert stays.tolist() == ARRAYS[f"{name}_keep{turn}"].tolist()
        event, matters, place = event[kept], matters[kept], place[stays]
        assert event.bincount(minlength=len(lengths)).tolist() == ARRAYS[f"{name}_event_len{turn}"].tolist()
        held.append(len(place))
    left = torch.cat([torch.arange(start), torch.arange(start + len(event), len(place))])
    assert left.tolist() == ARRAYS[f"{name}_keep2"].tolist()  # keep: 0 at the third
    held.append(text)
    ends = [*layers, case["num_layers"]]
    prefill = [n for n, first, end in zip(held, [0, *layers], ends, strict=True) for _ in range(first, end)]
    decode = [n if layer < layers[0] else text for layer, n in enumerate(prefill)]  # llm.cache: keep 0 of scope visual
    assert prefill == ARRAYS[f"{name}_kv_len_prefill"].tolist()
    assert decode == ARRAYS[f"{name}_kv_len_decode"].tolist()
    for array, n in (("mid", held[1]), ("late", held[2])):
        visual = n - text
        slots = [*range(start), *range(start + visual, n)]
        assert slots == ARRAYS[f"{name}_kv_map_{array}"].tolist()


def tokens_of(hidden, coord):
    """One row whose tokens are all of one video."""
    n = hidden.shape[1]
    index = torch.arange(n)[None]
    return Tokens(
        hidden=hidden,
        position=index,
        coord=coord,
        image=torch.zeros(1, n, dtype=torch.long),
        size=torch.ones(1, n, dtype=torch.long),
        valid=torch.ones(1, n, dtype=torch.bool),
        total=torch.tensor([n]),
        index=index,
        host_total=(n,),
        host_alive=(n,),
    )
