"""The plain way to write each method's choice, as its released code goes about it, for one sample.

Written from the descriptions of what those codes do, not from the codes: what is worked out anew at every pick, kept in
Python sets, read from tensors one by one, or made whole to use one row of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def farthest(x: Tensor, k: int) -> list[int]:
    """DivPrune: all distances, a full search for the two smallest of each column, then at pick i a fresh gather of i
    rows and their minimum.
    """
    x = normalize(x, dim=1)
    distance = 1 - x @ x.T
    picks = torch.empty(k, dtype=torch.long)
    picks[0] = distance.topk(2, dim=0, largest=False).values[1].argmax()
    for i in range(1, k):
        picks[i] = distance.index_select(0, picks[:i]).min(0).values.argmax()
    return picks.tolist()


def duplicates(x: Tensor, keys: Tensor, text: Tensor, text_keys: Tensor, quota: int) -> list[int]:
    """DART: pivots as lists, candidates as a set that is copied for each pivot, indices read one by one."""
    image = keys.abs().sum((0, 2)).topk(4).indices.tolist()
    behind = text_keys.abs().sum((0, 2)).topk(4).indices.tolist()
    kept = set(image)
    candidates = set(range(len(x))) - kept
    for pivot in [*(x[i] for i in image), *(text[i] for i in behind)]:
        listed = torch.tensor(sorted(candidates))
        nearest = torch.cosine_similarity(pivot[None], x[listed], dim=1).topk(quota, largest=False).indices
        for place in nearest:
            index = int(listed[place].item())
            kept.add(index)
            candidates.discard(index)
    return sorted(kept)


def attention(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """[H, S, S] a layer's attention whole, as eager code makes it."""
    logits = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        logits = logits + torch.full(logits.shape[-2:], torch.finfo(logits.dtype).min).triu(1)
    return logits.softmax(-1)


def highest(scores: Tensor, k: int) -> list[int]:
    """FasterVLM, FastV: top-k, marked and read in order."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[scores.topk(k).indices] = True
    return torch.where(mask)[0].tolist()


def walk(query: Tensor, key: Tensor, first: int, number: int, k: int) -> list[int]:
    """AIM: the sharpened attention of all heads whole, and five products with it."""
    S = query.shape[1]
    logits = query @ key.mT * query.shape[-1] ** -0.5
    logits = logits + torch.full((S, S), torch.finfo(logits.dtype).min).triu(1)
    matrix = (logits / 0.1).softmax(-1)
    here = torch.full((query.shape[0], 1, S), 1 / S)
    for _ in range(5):
        here = here @ matrix
    scores = here[:, 0].square().mean(0).sqrt()
    return highest(scores[first : first + number], k)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """SparseVLM: which text tokens care about the image."""
    scores = (visual @ text.T).softmax(1).mean(0)
    return torch.where(scores > scores.mean())[0]


def clusters(x: Tensor, k: int) -> Tensor:
    """SparseVLM: [k, D] means of density-peak clusters."""
    distance = torch.cdist(x, x) / x.shape[1] ** 0.5
    density = (-(distance.topk(k, dim=-1, largest=False).values ** 2).mean(-1)).exp()
    lower = (density[None] <= density[:, None]).float()
    apart = (distance * (1 - lower) + distance.max() * lower).min(-1).values
    centres = (apart * density).topk(k).indices
    group = distance[centres].argmin(0)
    group[centres] = torch.arange(k)
    weights = one_hot(group, k).float()
    return weights.T @ x / (weights.sum(0)[:, None] + 1e-6)


def rank_and_cluster(
    x: Tensor, visual: Tensor, text: Tensor, rows: Tensor, direct: int, recycled: int, means: int
) -> tuple[list[int], Tensor]:
    """SparseVLM: a whole cut with recycling; kept indices and the rows that go on."""
    relation = rows[:, raters(visual, text)].mean((0, 1))
    order = relation.argsort(descending=True)
    kept = order[:direct].sort().values
    removed = order[direct : direct + recycled].sort().values
    return kept.tolist(), torch.cat([x[kept], clusters(x[removed], means)])


def matched(x: Tensor, size: Tensor, metric: Tensor, r: int) -> Tensor:
    """ToMe: one block's matching and merging; row 0 is the class token."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[::2] @ metric[1::2].T
    scores[0] = -torch.inf
    best, partner = scores.max(-1)
    order = best.argsort(descending=True)
    goes, stays = order[:r], order[r:].sort().values
    into = partner[goes]

    def merge(rows: Tensor) -> Tensor:
        even, odd = rows[::2], rows[1::2].clone()
        odd.scatter_reduce_(0, into[:, None].expand(-1, rows.shape[1]), even[goes], "sum")
        return torch.cat([even[stays], odd])

    return merge(x * size[:, None]) / merge(size[:, None])


def zipped(x: Tensor, attention: Tensor, keys: Tensor, dominant: int, contextual: int) -> Tensor:
    """VisionZip: x, attention [H, 1 + N] and keys [H, 1 + N, d] with the class token in front."""
    top = attention[:, 1:].sum(0).topk(dominant - 1).indices + 1
    mask = torch.ones(len(x), dtype=torch.bool)
    mask[0] = False
    mask[top] = False
    metric = keys.mean(0)
    metric, rest = metric[mask], x[mask]
    metric = metric / metric.norm(dim=-1, keepdim=True)
    step = max(1, len(rest) // contextual)
    targets = torch.arange(0, len(rest), step)[:contextual]
    others = torch.tensor([i for i in range(len(rest)) if i not in set(targets.tolist())])
    joins = one_hot((metric[others] @ metric[targets].T).argmax(1), contextual).to(x.dtype)
    means = joins.T @ rest[others] / joins.sum(0).clamp(min=1)[:, None]
    return torch.cat([x[~mask], rest[targets] + means])


def recycled(x: Tensor, worth: Tensor, region: Tensor, coord: Tensor, share: float, side: float) -> Tensor:
    """VFlowOpt: prune, and merge what was pruned cell by cell, with numbers read one by one."""
    T = len(x)
    low = worth.argsort()[: round(T * (1 - share)) + int(T / side**2)]
    cells: dict[tuple[int, int, int], list[int]] = {}
    for i in low.tolist():
        at = (int(region[i].item()), int(coord[i, 0].item() // side), int(coord[i, 1].item() // side))
        cells.setdefault(at, []).append(i)
    keep = torch.ones(T, dtype=torch.bool)
    keep[low] = False
    x = x.clone()
    for members in cells.values():
        weights = worth[members] / worth[members].sum()
        best = members[int(weights.argmax().item())]
        x[best] = (weights[:, None] * x[members]).sum(0)
        keep[best] = True
    return x[keep]


def permuted(N: int, k: int, seeds: list[int]) -> Tensor:
    """random: a permutation of each sample, from a generator with a seed of its own; [B, k] its first k, ascending."""
    drawn = [torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:k] for seed in seeds]
    return torch.stack(drawn).sort(dim=1).values
