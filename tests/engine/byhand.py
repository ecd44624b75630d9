"""Forwards written out, step by step, for one prompt without padding or cache; nothing of the engine is used."""

from __future__ import annotations

import tiny
import torch


def split(x, heads):
    """[1, S, heads * d] as [1, heads, S, d]."""
    return x.view(1, x.shape[1], heads, -1).transpose(1, 2)


def turned(x, cos, sin):
    """Each pair of numbers turned by its angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def attend(block, x, added, out, turn=None):
    """What an attention block computes, by name.

    Args:
        x: [1, S, D], what enters it.
        added: [S, S] what is added to its logits.
        out: name of its last projection.
        turn: (cos, sin) [1, S, d], None without RoPE.
    """
    d = block.head_dim
    query, key, value = (split(p(x), p.out_features // d) for p in (block.q_proj, block.k_proj, block.v_proj))
    if turn is not None:
        query, key = (turned(y, turn[0][:, None], turn[1][:, None]) for y in (query, key))
    query = query * d**-0.5
    times = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(times, dim=1).mT + added
    probs = logits.softmax(dim=-1)
    mixed = (probs @ value.repeat_interleave(times, dim=1)).transpose(1, 2).flatten(2)
    left = getattr(block, out)(mixed)
    return {"queries": query, "keys": key, "values": value, "logits": logits, "probs": probs, "attention": (x, left)}


def tower(lvlm, pixels, at=lambda where, x: x, bias=lambda layer: 0.0, seen=None):
    """What the projector reads for one picture, class token included.

    Args:
        pixels: [1, 3, height, width].
        at: (kind of site, layer), states -> states, called at every place where patches may be cut.
        bias: layer -> what is added to its attention logits.
        seen: receives, per layer, what `attend` says.
    """
    vision, asked = lvlm.vision, lvlm.config.vision_feature_layer
    x = vision.embeddings(pixels)
    if hasattr(vision, "pre_layrnorm"):
        x = vision.pre_layrnorm(x)
    for i, layer in enumerate(vision.encoder.layers[: len(vision.encoder.layers) + 1 + asked]):
        inside = {"hidden": x}
        x = at(("layer", i), x)
        inside |= attend(layer.self_attn, layer.layer_norm1(x), bias(i), "out_proj")
        x = at(("mlp", i), x + inside["attention"][1])
        x = x + layer.mlp(layer.layer_norm2(x))
        if seen is not None:
            seen.append(inside | {"left": x})
    return x


def decoder(lvlm, x, places, before=lambda layer, x, places: (x, places), seen=None):
    """Logits [1, S', V] of embeddings [1, S, D] at positions [1, S].

    Args:
        before: (layer, states, positions) -> what enters the layer.
        seen: receives, per layer, what `attend` says and what enters and leaves it.
    """
    for i, layer in enumerate(lvlm.decoder.layers):
        whole = x
        x, places = before(i, x, places)
        turn = lvlm.decoder.rotary_emb(x, places)
        later = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
        inside = {"hidden": whole, "rotary": turn}
        inside |= attend(layer.self_attn, layer.input_layernorm(x), later, "o_proj", turn)
        between = x + inside["attention"][1]
        entered = layer.post_attention_layernorm(between)
        left = layer.mlp(entered)
        if seen is not None:
            seen.append(inside | {"mlp": (entered, left), "layer": (x, between + left)})
        x = between + left
    return lvlm.model.lm_head(lvlm.decoder.norm(x))


def embed(lvlm, ids, features):
    """[1, S, D] embeddings of ids, with features [N, D] at the placeholders."""
    x = lvlm.model.get_input_embeddings()(ids)
    return x.masked_scatter((ids == tiny.IMAGE)[..., None], features.to(x.dtype))


def project(lvlm, row, pictures=None):
    """[N, D] features of a row's patches; those that are gone are zero.

    Args:
        pictures: per picture (states of the patches alive, those patches); None runs the tower unpruned.
    """
    each = tiny.SIDE**2
    if "pixel_values" not in row:
        return torch.zeros(0, lvlm.hidden_size)
    with torch.no_grad():
        if pictures is None:
            front = lvlm.towers["vision"].class_tokens
            states = [tower(lvlm, p[None])[0, front:] for p in row["pixel_values"]]
            pictures = [(x, list(range(each))) for x in states]
        full = torch.zeros(len(pictures), each, lvlm.hidden_size)
        for p, (states, slots) in enumerate(pictures):
            full[p, sorted(slots)] = lvlm.projector(states)  # in their order on the places that stay
    return full.flatten(0, 1)


def merged(states, keep, target, weight, combine="mean"):
    """[K, D] what kept tokens hold when others flowed into them, one by one."""
    found = []
    for k in keep:
        members = [j for j, to in enumerate(target) if to == k]
        total = sum(weight[j] * states[j] for j in members)
        found.append(total / sum(weight[j] for j in members) if combine == "mean" else total)
    return torch.stack(found) if found else states[:0]


def summed(sizes, keep, target):
    """Original tokens that each kept one stands for."""
    return [sum(sizes[j] for j, to in enumerate(target) if to == k) for k in keep]


class Rows:
    """One prompt on its way through the decoder: which rows are visual, and what is done to them.

    Args:
        visual: [S] bool.
        moves: (layer, kept among the visual tokens alive in their new order, their states or a function of all
            states, whether positions close up), in the order of the stages.
    """

    def __init__(self, visual, moves):
        self.visual, self.moves = visual.nonzero().flatten().tolist(), moves
        self.index = list(range(len(self.visual)))
        self.log = []  # per layer: rows of visual tokens, and which of all visual tokens they are, before and behind

    def before(self, layer, x, places):
        """As `decoder` asks."""
        entry = [(list(self.visual), list(self.index))]
        for at, keep, states, renumber in self.moves:
            if at == layer:
                x, places = self.move(x, places, keep, states, renumber)
        self.log.append([*entry, (list(self.visual), list(self.index))])
        return x, places

    def move(self, x, places, keep, states, renumber):
        """Drop, put in order, exchange."""
        now = x[0, self.visual]
        fresh = now[keep] if states is None else states(now) if callable(states) else states
        seats = sorted(self.visual[k] for k in keep)  # the j-th token takes the j-th smallest
        x = x.clone()
        if seats:
            x[0, seats] = fresh
        rows = [row for row in range(x.shape[1]) if row not in self.visual or row in seats]
        self.index = [self.index[k] for k in keep]
        self.visual = [rows.index(seat) for seat in seats]
        places = torch.arange(len(rows))[None] if renumber else places[:, rows]
        return x[:, rows], places


def cuts(call, b, schedule):
    """Moves of a row whose tokens were merely cut, from what a trace says."""
    found, alive = [], list(range(call.total[b]))
    for record, stage in zip(call.stages, schedule, strict=True):
        kept = record.kept[b]
        found.append((stage.site.first_layer, [alive.index(i) for i in kept], None, stage.positions == "renumber"))
        alive = kept
    return found


def answer(lvlm, ids, features, moves, tokens):
    """Logits [n, V] of n answer tokens [n], the prompt and what was answered in one go.

    Args:
        ids: [1, S].
        features: as `project`.
        moves: as `Rows`.
        tokens: greedy tokens; the logits of each are those behind the ones before it.
    """
    rows = Rows(ids[0] == tiny.IMAGE, moves)
    with torch.no_grad():
        said = lvlm.model.get_input_embeddings()(tokens[None, :-1])  # perhaps a placeholder's id, which means nothing
        x = torch.cat([embed(lvlm, ids, features), said], dim=1)
        out = decoder(lvlm, x, torch.arange(x.shape[1])[None], rows.before)
    return out[0, -len(tokens) :]


def trail(lvlm, ids, features, moves):
    """What each layer sees of one prompt, and its `Rows`."""
    rows, seen = Rows(ids[0] == tiny.IMAGE, moves), []
    with torch.no_grad():
        decoder(lvlm, embed(lvlm, ids, features), torch.arange(ids.shape[1])[None], rows.before, seen)
    return seen, rows
