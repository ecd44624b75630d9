"""Entropy of patches: known histograms, what a convolution leaves over, and both ways to gray."""

import pytest
import torch

from btp.ops.entropy import gray_levels, patch_entropy, patch_side

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def normalised(levels):
    """Pictures of 0..255 as a tower gets them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (levels / 255 - mean) / std


def test_known_histograms():
    """One level has no entropy, two equally often one bit, sixteen different ones four."""
    flat, half, all_different = torch.zeros(4, 4), torch.zeros(4, 4), torch.arange(16.0).view(4, 4)
    half[:2] = 255
    picture = torch.cat([flat, half, all_different], dim=1).long()[None]
    torch.testing.assert_close(patch_entropy(picture, 3), torch.tensor([[0.0, 1.0, 4.0]]))


def test_patches_are_read_row_by_row():
    picture = torch.zeros(1, 8, 8, dtype=torch.long)
    picture[:, 4:, :4] = torch.arange(16).view(4, 4)
    assert patch_entropy(picture, 4).tolist() == [[0, 0, 4, 0]]


def test_what_the_convolution_leaves_over_counts_for_nothing():
    """SigLIP at 384 has 27 x 27 patches of 14; the last 6 pixels of a side belong to none."""
    assert patch_side(384, 384, 729) == 14
    assert patch_side(336, 336, 576) == 14
    picture = torch.randint(256, (1, 384, 384))
    changed = picture.clone()
    changed[:, 378:] = 0
    changed[:, :, 378:] = 0
    assert torch.equal(patch_entropy(picture, 729), patch_entropy(changed, 729))


def test_paper_gray_undoes_the_normalisation():
    """The mean of the channels, rounded: exactly what the picture had."""
    levels = torch.randint(256, (2, 3, 6, 6)).float()
    assert torch.equal(gray_levels(normalised(levels), "paper", MEAN, STD), levels.mean(1).round().long())


def test_official_gray_wraps_around():
    """-1 times 255 is -255, which is 1 in unsigned 8 bit; 0.5 is 127."""
    pixels = torch.tensor([-1.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert gray_levels(pixels, "official", (), ()).tolist() == [[[1, 127, 255]]]


def test_messages():
    pixels = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"pruner.method.entropy is 'luma'"):
        gray_levels(pixels, "luma", MEAN, STD)
    with pytest.raises(ValueError, match=r"pruner.method.std is \[0.5\]"):
        gray_levels(pixels, "paper", MEAN, (0.5,))
    with pytest.raises(ValueError, match="cannot be cut into 7 square patches"):
        patch_entropy(torch.zeros(1, 8, 8, dtype=torch.long), 7)
