"""BTP as its released code goes about it, written out with Python sets and loops: nothing of the project's operators.

With it, cases of every kind that `btp.json` describes are made here, so that what compares them is known to run.
"""

import torch

from parity.plain_llama import PlainLlama

WORD = 17  # what the decode step is given
FIRST, IMAGE, TEXT = 35, 576, 12  # rows of the whole runs


def farthest(x, seeds, more):
    """`more` picks behind the seeds, by 1 - cosine; without a seed the token whose nearest other is farthest begins."""
    x = torch.nn.functional.normalize(x.float(), dim=-1)
    apart = 1 - x @ x.T
    picks, seeds = [], list(seeds)
    for _ in range(more):
        taken = [*seeds, *picks]
        if taken:
            nearest = apart[taken].amin(0)
            nearest[taken] = -1
        else:
            nearest = (apart + 9 * torch.eye(len(x))).amin(0)
        picks.append(int(nearest.argmax()))
    return picks


def attended(scores, select, candidates, split):
    """The first `select` of the highest `candidates`, those in front of `split` first."""
    line = scores.argsort(descending=True, stable=True)[:candidates].tolist()
    return [*(i for i in line if i < split), *(i for i in line if i >= split)][:select]


def spread(rows, columns, count):
    """Places of a grid, each as far as possible from all before it, by Manhattan distance."""
    places = [(r, c) for r in range(rows) for c in range(columns)]
    picks = [0]
    while len(picks) < count:
        away = [min(abs(r - places[p][0]) + abs(c - places[p][1]) for p in picks) for r, c in places]
        picks.append(max(range(len(places)), key=lambda i: (away[i], -i)))
    return picks[:count]


def llava(stage, k, x, scores, grid=(24, 24)):
    """Rows that stage 1, 2 or 3 keeps, ascending: with a token twice at stage 2, or more than k at stage 1."""
    if stage == 3:
        return sorted(attended(scores, k, int(k * 1.2), k))
    share, over = (0.3, 3.7) if stage == 1 else (0.9, 1.5)
    apart = farthest(x, (), int((0.3 if stage == 1 else 0.1) * k))
    looked = attended(scores, int(share * k), int(int(share * k) * over), k)
    if stage == 1:
        union = {*apart, *looked, *spread(*grid, len(x) // 4)}
        return sorted([*union, *farthest(x, union, k - len(union))])
    return sorted([*apart, *looked, *farthest(x, {*apart, *looked}, k - len(apart) - len(looked))])


def qwen(stage, k, x, scores):
    """The same of the code for Qwen2.5-VL."""
    if stage == 3:
        return sorted(attended(scores, k, int(1.2 * k), k))
    number = int(int(0.1 * k) * 1.2) if stage == 1 else int(0.4 * k)
    looked = attended(scores, number, number, 0)
    return sorted([*looked, *farthest(x, looked, k - number)])


def stage_case(rule, stage, k, x, attention, place=None):
    """Arrays of one stage, under the names that the recorded file has."""
    kept = torch.tensor(rule(stage, k, x, attention.float().mean(0)))
    place = torch.arange(len(x)) if place is None else place
    return {"hidden": x, "attention": attention, "place": place, "kept_rel": kept, "kept_place": place[kept]}


def chain(rule, counts, total, random, form="logits", **more):
    """Three stages on random states; each works on what the one before kept."""
    place, arrays = torch.arange(total), {}
    for stage, k in enumerate(counts, start=1):
        x = torch.randn(len(place), 16, generator=random).half()
        logits = torch.randn(4, len(place), generator=random).half()
        attention = logits if form == "logits" else logits.float().softmax(-1) / 2
        case = stage_case(rule, stage, k, x, attention, place)
        arrays |= {f"stage{stage}/{name}": value for name, value in case.items()}
        place = case["kept_place"]
    facts = {f"stage{stage}": {"k": k} for stage, k in enumerate(counts, start=1)}
    return arrays, facts | more


def weights(random, layers=23, D=32, words=61):
    """A tiny Llama that nobody trained, exact in float16."""
    shapes = {f"self_attn.{n}_proj": (D, D) for n in "qkvo"}
    shapes |= {"mlp.gate_proj": (48, D), "mlp.up_proj": (48, D), "mlp.down_proj": (D, 48)}
    out = {"embed_tokens.weight": torch.randn(words, D, generator=random), "norm.weight": torch.ones(D)}
    for i in range(layers):
        out |= {f"layers.{i}.{n}.weight": torch.randn(s, generator=random) * 0.2 for n, s in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"layers.{i}.{norm}.weight"] = torch.rand(D, generator=random) + 0.5
    return {name: value.half() for name, value in out.items()}


def run(w, embeds, cuts):
    """Arrays of a whole run with one decode step: the step's row stands behind the prompt, where no other sees it.

    Args:
        w: name -> weight.
        embeds: [S, D].
        cuts: layer -> (stage, tokens that stay there); 0 withdraws all.
    """
    model = PlainLlama({name: value.float() for name, value in w.items()}, heads=4, eps=1e-6)
    x = torch.cat([embeds.float(), w["embed_tokens.weight"][WORD : WORD + 1].float()])[None]
    positions, image, probs, arrays, lengths = torch.arange(x.shape[1])[None], IMAGE, None, {}, []
    for layer in range(model.layers):
        if layer in cuts:
            stage, k = cuts[layer]
            span = slice(FIRST, FIRST + image)
            scores = None if probs is None else probs[0, :, -2, span].log().mean(0)  # of logits, but for a constant
            kept = llava(stage, k, x[0, span], scores) if k else []
            behind = range(FIRST + image, x.shape[1])
            rows = torch.tensor([*range(FIRST), *(FIRST + i for i in kept), *behind])
            x, positions, image = x[:, rows], positions[:, rows], len(kept)
            arrays |= {f"rows_layer{layer}": rows[:-1], f"positions_layer{layer}": positions[0, :-1]}
        lengths.append(x.shape[1] - 1)
        ran = model.run(layer, x, positions)
        x, probs = ran.out, ran.probs
    x = model.norm(x, "norm")[0]
    arrays |= {"layer_lengths": torch.tensor(lengths), "kv_lengths": torch.tensor(lengths)}
    arrays |= {"kv_lengths_after_decode": torch.tensor(lengths) + 1}
    return arrays | {"last_hidden_state": x[:-1], "decode_last_hidden_state": x[-1:]}
