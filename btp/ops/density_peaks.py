"""Density-peak clustering: centres are dense rows far from any denser one; the others join the nearest centre."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.ops.row_blocks import row_blocks

TILE = 256  # rows and columns of distances made at once on a CPU, whose cache holds what is turned over
NEAR = 8  # units of rounding that the distance of a copy may have


def density_peaks(
    x: Tensor, k: Sequence[int], valid: Tensor | None = None, strict: bool = False, neighbours: int | None = None
) -> tuple[Tensor, Tensor]:
    """Group rows around the k most prominent ones.

    Distance is euclidean over sqrt(D). A row's density is exp(-mean squared distance to its k nearest rows, itself
    among them); its distance to others is that to the nearest denser row, for the densest of all the largest
    distance there is. The k rows with the highest product of the two are centres. Products are compared as
    logarithms, since densities of far rows vanish in float32. Of equals the lowest index is the denser one and the
    earlier centre; a row between two centres joins the earlier one. No host sync; one M x M table per row of the batch.

    Args:
        x: [B, M, D] features; padded rows may hold any finite values.
        k: B numbers of clusters, each in [0, valid rows].
        valid: [B, M] bool, real rows in front; None = all.
        strict: of equally dense rows none is the denser one, so that both of a pair can be centres. With k = 2 that
            is any two rows which are each other's nearest. The released code without its noise does so; with it,
            chance makes one of them the denser.
        neighbours: nearest rows that make the density; None = as many as clusters.

    Returns:
        [B, max(k)] indices of the centres in descending order of their product, shorter rows padded with -1 at the
        end; and [B, M] which of them each row belongs to (arbitrary where padded or where k is 0).

    Raises:
        ValueError: k does not match the rows, or is not in [0, M].

    Source: Du et al. 2016 (DPC-KNN), as used by Zhang et al. 2024, arXiv:2410.04417. Their code adds 1e-6 of uniform
    noise to the density, so that its results vary; there is none here.
    """
    B, M, D = x.shape
    counts = tuple(k)
    if len(counts) != B:
        raise ValueError(f"density_peaks got {len(counts)} numbers of clusters for {B} rows. Pass one per row.")
    if min(counts, default=0) < 0 or max(counts, default=0) > M:
        raise ValueError(f"density_peaks was asked for {counts} clusters of {M} rows. They must lie in 0..{M}.")
    wanted = on_device(counts, x.device)[:, None]  # [B, 1]
    if valid is None:
        valid = torch.ones(B, M, dtype=torch.bool, device=x.device)
    distance = _distances(x, valid) / D**0.5
    near = wanted if neighbours is None else valid.sum(1, keepdim=True).clamp(max=neighbours)
    most = min(M, max(counts, default=0) if neighbours is None else neighbours)
    scores = _prominence(distance, near, most, valid, strict)
    centres = scores.argsort(dim=1, descending=True, stable=True)[:, : max(counts, default=0)]
    group = x.new_zeros(B, M, dtype=torch.long)
    if not centres.shape[1]:
        return centres, group
    number = torch.arange(centres.shape[1], device=x.device)
    idle = number >= wanted  # [B, K]
    to_centres = distance.gather(2, centres[:, None].expand(-1, M, -1))
    group = to_centres.masked_fill(idle[:, None], torch.inf).argmin(2)
    spare = torch.cat([group, group[:, :1]], dim=1)  # centres that are none write behind the rows
    own = spare.scatter(1, centres.masked_fill(idle, M), number.expand_as(centres))
    return centres.masked_fill(idle, -1), own[:, :M]


def _distances(x: Tensor, valid: Tensor) -> Tensor:
    """[B, M, M] symmetric, 0 for a row and itself and for rows too near to each other to be told apart.

    Made as a product around the mean of the real rows. It has an error of about 1e-7 of the squared lengths there, so
    that what is below `NEAR` times as much counts as a copy.
    """
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    x = x.masked_fill(~valid[..., None], 0)
    x -= x.sum(1, keepdim=True) / valid.sum(1)[:, None, None].clamp(min=1)
    product = x.masked_fill_(~valid[..., None], 0) @ x.mT
    lengths = product.diagonal(dim1=1, dim2=2).clone()
    M = x.shape[1]
    size = TILE if x.device.type == "cpu" else max(1, M)
    tiles = [slice(first, first + size) for first in range(0, M, size)]
    for down, right in combinations_with_replacement(tiles, 2):
        scale = lengths[:, down, None] + lengths[:, None, right]
        both = product[:, down, right] + product[:, right, down].mT  # halves, which need not agree in the last bit
        squared = scale - both
        near = squared <= NEAR * torch.finfo(x.dtype).eps * scale
        distance = squared.masked_fill_(near, 0).sqrt_()
        product[:, down, right] = distance
        product[:, right, down] = distance.mT
    return product


def _prominence(distance: Tensor, wanted: Tensor, most: int, valid: Tensor, strict: bool) -> Tensor:
    """[B, M] log of density times distance to the nearest denser row; -inf for duplicates and padding.

    Args:
        wanted: [B, 1] nearest rows that make the density, `most` at most.
    """
    B, M, _ = distance.shape
    index = torch.arange(M, device=distance.device)
    counted = (index[:most] < wanted)[:, None]  # [B, 1, most]
    blocks = list(row_blocks(M, distance[:, :1].nbytes, distance.device))
    spread = distance.new_empty(B, M)  # minus the log of the density
    for some in blocks:
        squared = distance[:, some].square().masked_fill_(~valid[:, None], torch.inf)
        nearest = squared.topk(most, dim=2, largest=False).values  # [B, R, most], ascending
        spread[:, some] = nearest.masked_fill(~counted, 0).sum(2) / wanted.clamp(min=1)
    apart, found = torch.empty_like(spread), torch.empty_like(valid)
    widest = distance.new_zeros(B)
    for some in blocks:
        mine, other = spread[:, some, None], spread[:, None]
        denser = other < mine
        if not strict:
            denser = denser | ((other == mine) & (index < index[some, None]))
        denser = denser & valid[:, None]
        rows = distance[:, some]
        apart[:, some], found[:, some] = rows.masked_fill(~denser, torch.inf).amin(2), denser.any(2)
        pairs = valid[:, None] & valid[:, some, None]
        widest = torch.maximum(widest, rows.masked_fill(~pairs, 0).amax((1, 2)))
    apart = torch.where(found, apart, widest[:, None])
    return (apart.log() - spread).masked_fill(~valid, -torch.inf)
