"""What the authors' prototype of PagedEviction does with a cache, defects and all, to hold its recorded runs against.

Scores are those of `btp.pruners.pagedeviction`. The prototype evicts before it attends. Kinds that it calls local
compare pages by a list that was made from the unpruned prompt, of which a trigger renews the last entry alone; kinds
that it calls global keep the lowest scores of the prompt and drop the page with the highest.
"""

from __future__ import annotations

from btp.pruners.pagedeviction import PagedEviction


def method_of(kind, page, protect=True):
    """Our method for a name of the prototype's scores."""
    how = "inv_key" if kind.startswith("Inverse") else "v_plus_k" if "Key" in kind else "value"
    return PagedEviction(score=how, heads="mean", page=page, candidates="all", protect=protect)


def prototype(case, keys, values):
    """Slots held after the prompt and after each step, as lists of places.

    Args:
        case: an entry of the json.
        keys, values: [1, heads, P + D, d].
    """
    P, page, budget = case["prompt_len"], case["page_size"], case["cache_budget"]
    kind = case["KV_cache_method"]
    method, is_global = method_of(kind, page), kind.endswith("global")

    def token_scores(places):
        return method.score(keys[:, :, places], values[:, :, places])[0, 0].tolist()

    def page_score(places):
        if method.how == "inv_key":  # the inverse of the mean norm, not the mean of inverses
            return 1.0 / (float(keys[:, :, places].norm(dim=-1).mean()) + 1e-6)
        return sum(token_scores(places)) / len(places)

    every = list(range(P))
    scores = token_scores(every)
    last = (P - 1) // page * page
    fixed = [*every[:page], *every[last:]]
    middle = sorted((p for p in every if p not in fixed), key=lambda p: scores[p], reverse=not is_global)
    held = sorted(fixed + middle[: budget - len(fixed)]) if budget < P or not is_global else every

    def pages(places):
        return [places[i : i + page] for i in range(0, len(places), page)]

    stored = (
        [page_score(p) for p in pages(held)] if is_global else [sum(scores[p] for p in part) for part in pages(every)]
    )
    kept = [list(held)]
    for t in range(case["decode_steps"]):
        held = [*held, P + t]
        parts = pages(held)
        if len(held) % page == 0 and (len(held) > budget or not is_global):
            if is_global:
                stored.append(page_score(parts[-1]))
                victim = max(range(1, len(parts) - 1), key=lambda i: stored[i])
            else:
                stored[-1] = sum(token_scores(parts[-1]))
                victim = min(range(1, min(1 + case["topk"], len(parts) - 1)), key=lambda i: stored[i])
            del stored[victim]
            held = [p for i, part in enumerate(parts) if i != victim for p in part]
        kept.append(list(held))
    return kept
