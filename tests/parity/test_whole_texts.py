"""Whole text models under A2SF, H2O, PagedEviction and LazyLLM, against recorded runs and against a plain walk.

No official code of these runs exists as a whole model; recorded cases are somebody else's runs of the cards' rules.
Cases that do not lie here are skipped; who has the file drops it in.
"""

import json

import numpy
import pytest
import torch
from lazy_toys import rows_per_step
from who_saw_whom import saw

from btp.engine.attach import attach
from parity.plain_slots import PlainSlots, a2sf, paged
from parity.whole_texts import HERE, WholeText, cases, read, strangers

RECORDED = cases()
RULES = {
    "a2sf_online_C10_a03": (a2sf(10, 0.3), 7),
    "h2o_C10": (a2sf(10, 1.0), 7),
    "paged_C16_B4": (paged(16, 4), 0),
}
ROWS, PROMPT, STEPS, WORDS = 2, 30, 20, 60


def held_against(case, attention):
    """Run our engine over a case: tokens, logits, slots left and rows computed are the recorded ones."""
    host, (method, schedule) = case.host(attention), case.method()
    host.model.generation_config.eos_token_id, host.model.generation_config.pad_token_id = None, 0
    ask = {"max_new_tokens": case.tokens.shape[1], "do_sample": False, "output_logits": True}
    with torch.no_grad(), attach(host, method, schedule) as trace:
        ran = host.generate(input_ids=case.ids, attention_mask=case.mask, return_dict_in_generate=True, **ask)
    logits = torch.stack(ran.logits, dim=1)
    assert ran.sequences[:, case.ids.shape[1] :].tolist() == case.tokens.tolist()
    assert (logits - case.logits).abs().max() < 1e-4 * max(1.0, float(case.logits.abs().max()))
    call, lengths = trace.last, case.mask.sum(1).tolist()
    assert call.decode_steps == case.tokens.shape[1] - 1
    for layer, rows in enumerate(case.left or ()):
        for b, (recorded, gone) in enumerate(zip(rows, call.gone(f"llm.cache.{layer}"), strict=True)):
            gone = gone * len(recorded) if len(gone) == 1 else gone
            all_places = range(lengths[b] + call.decode_steps)
            assert [[p for p in all_places if p not in head] for head in gone] == recorded
    if case.saw is not None:
        for b, length in enumerate(lengths):
            check_sight(case.saw[:, b], saw(call, b, length + call.decode_steps), case.ids.shape[1] - length)
    if case.rows is not None:
        ours = torch.tensor([rows_per_step(call, b) for b in range(len(lengths))]).permute(1, 2, 0)
        assert torch.equal(ours, case.rows.view_as(ours).long())


def check_sight(recorded, ours, lead):
    """Who saw whom at each stage; that everybody sees itself is not compared.

    Args:
        recorded: [stages, n, n] of one row, with its padding or without; the stage in front of all cuts may be first.
        ours: (first layer, [length, length] bool) of each stage.
        lead: padding in front.
    """
    for stage, (layer, mask) in zip(recorded[len(recorded) - len(ours) :], ours, strict=True):
        n = len(mask)
        parts = [stage[at : at + n, at : at + n] for at in {0, lead}]
        others = [part.clone().fill_diagonal_(False) for part in parts if part.shape == mask.shape]
        assert any(torch.equal(part, mask.clone().fill_diagonal_(False)) for part in others), f"stage at layer {layer}"


@pytest.mark.parametrize(("file", "name"), RECORDED, ids=[name for _, name in RECORDED])
def test_every_array_is_read(file, name):
    unread = read(file, name).unread
    assert not unread, f"{file.name}: case {name} holds arrays that nothing is held against: {', '.join(unread)}."


def test_every_file_has_a_handler(tmp_path):
    """A file that is dropped in is read, or fails by its name."""
    source = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    named = {file.stem for file in HERE.glob("*.npz") if f'"{file.stem}"' in source or f"{file.stem}.npz" in source}
    assert not strangers(named)
    numpy.savez(tmp_path / "texts.npz", **{"lazy_thirty/logits": numpy.zeros(3)})
    assert "texts.npz is read by no handler" in strangers(named, tmp_path)[0]


def test_a_case_without_its_parts_fails_by_their_names(tmp_path):
    _, made = walk("h2o_C10")
    made["log_probs"] = made.pop("logits")
    numpy.savez(tmp_path / "text.npz", **{f"h2o_C10/{k}": x.numpy() for k, x in made.items()})
    with pytest.raises(AssertionError, match=r"h2o_C10 lacks logits, weights; it holds attention_mask, .*log_probs"):
        read(*cases(tmp_path)[0])


def test_a_lazy_record_is_held_against(tmp_path):
    """Rows of every step and who saw whom, padding counted or not; a single entry that is other is noticed."""
    weights, made = walk("h2o_C10")
    made = {key: made[key] for key in ("input_ids", "attention_mask")}
    case = WholeText("lazy30", {"bounds": (1, 3)}, weights, *made.values(), None, None, None, None, None, [])
    host, (method, schedule) = case.host("sdpa"), case.method()
    host.model.generation_config.eos_token_id, host.model.generation_config.pad_token_id = None, 0
    ask = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), attach(host, method, schedule) as trace:
        ran = host.generate(**made, **ask)
    lengths = made["attention_mask"].sum(1).tolist()
    rows = torch.tensor([rows_per_step(trace.last, b) for b in range(ROWS)]).permute(1, 2, 0)
    made |= {"tokens": ran.sequences[:, PROMPT:], "logits": torch.stack(ran.logits, 1), "rows": rows}
    sight = torch.zeros(2, ROWS, PROMPT + 5, PROMPT + 5, dtype=torch.bool)
    for b, length in enumerate(lengths):
        for at, (_, mask) in enumerate(saw(trace.last, b, length + 5)):
            sight[at, b, PROMPT - length :, PROMPT - length :] = mask
    other = sight.clone()
    other[1, 1, -3, 9] ^= True
    for seen, right in ((sight, True), (other, False)):
        whole = {f"lazy30_{k}": x.numpy() for k, x in (made | {"saw": seen}).items()}
        numpy.savez(tmp_path / "text.npz", **whole, **{f"w_{k}": x.numpy() for k, x in weights.items()})
        (tmp_path / "text.json").write_text(json.dumps({"cases": {"lazy30": {"bounds": [1, 3]}}}))
        found = read(*cases(tmp_path)[0])
        assert found.unread == []
        if right:
            held_against(found, "sdpa")
        else:
            with pytest.raises(AssertionError, match="stage at layer 3"):
                held_against(found, "sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("file", "name"), RECORDED, ids=[name for _, name in RECORDED])
def test_recorded(file, name, attention):
    held_against(read(file, name), attention)


def walk(name):
    """A case made by the plain walk: one prompt after another, without padding."""
    rule, pad = RULES[name]
    random = torch.Generator().manual_seed(11)
    weights = _weights(random)
    ids = torch.randint(5, WORDS, (ROWS, PROMPT), generator=random)
    mask = torch.ones_like(ids)
    mask[1, :pad], ids[1, :pad] = 0, 0
    plain = PlainSlots(weights, 4, 1e-6, rule)
    rows = [plain.answer(row[real.bool()].tolist(), STEPS) for row, real in zip(ids, mask, strict=True)]
    logits, tokens, left = zip(*rows, strict=True)
    width = max(len(head) for row in left for layer in row for head in layer)
    held = [[[h + [-1] * (width - len(h)) for h in row[at]] for row in left] for at in range(plain.layers)]
    made = {"input_ids": ids, "attention_mask": mask, "tokens": torch.tensor(tokens), "logits": torch.stack(logits)}
    return weights, made | {"positions": torch.tensor(held)}


def _weights(random, D=32, layers=4):
    shapes = {"q_proj": (D, D), "o_proj": (D, D), "k_proj": (D // 2, D), "v_proj": (D // 2, D)}
    shapes = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    shapes |= {"mlp.gate_proj": (2 * D, D), "mlp.up_proj": (2 * D, D), "mlp.down_proj": (D, 2 * D)}
    weights = {f"model.layers.{i}.{n}.weight": s for i in range(layers) for n, s in shapes.items()}
    weights |= {"model.embed_tokens.weight": (WORDS, D), "lm_head.weight": (WORDS, D)}
    made = {name: torch.randn(shape, generator=random) * 0.25 for name, shape in weights.items()}
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(layers) for n in ("input", "post_attention")]
    return made | {name: torch.rand(D, generator=random) + 0.5 for name in (*norms, "model.norm.weight")}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("style", ["/", "_"])
@pytest.mark.parametrize("name", RULES)
def test_engine_against_a_plain_walk(name, style, attention, tmp_path):
    """Written as a recorded file and read again, in both ways of naming arrays and both orders of axes."""
    weights, made = walk(name)
    if style == "_":
        made["logits"], made["positions"] = made["logits"].transpose(0, 1), made["positions"].transpose(0, 1)
        made["sequences"] = torch.cat([made["input_ids"], made.pop("tokens")], dim=1)
    arrays = {f"{name}{style}{key}": x.numpy() for key, x in made.items()}
    numpy.savez(tmp_path / "text.npz", **arrays, **{f"w{style}{key}": x.numpy() for key, x in weights.items()})
    (tmp_path / "text.json").write_text(json.dumps({"cases": [{"case": name}], "model": {"heads": 4}}))
    [(file, found)] = cases(tmp_path)
    held_against(read(file, found), attention)


def test_a_wrong_record_is_noticed(tmp_path):
    """One position, or one logit, that is not what happened."""
    weights, made = walk("h2o_C10")
    for key, at in (("positions", (0, 0, 0, 0)), ("logits", (0, 3, 7))):
        wrong = made | {key: made[key].clone()}
        wrong[key][at] += 1
        named = {f"h2o_C10/{k}": x.numpy() for k, x in wrong.items()}
        numpy.savez(tmp_path / "text.npz", **named, **{f"w/{k}": x.numpy() for k, x in weights.items()})
        with pytest.raises(AssertionError):
            held_against(read(*cases(tmp_path)[0]), "sdpa")
