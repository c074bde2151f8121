"""Augmentation keeps image and mask aligned, and balanced batches are balanced and repeatable."""

from __future__ import annotations

import pytest
import torch

from quantize.data.framed import FramedSet
from quantize.training.augmentation import Augmentation, AugmentationConfig, centered
from quantize.training.batches import BalancedBatches

STILL = AugmentationConfig(flips=False, affine_share=0, tone_share=0, noise_share=0, quarter_turns=False)


def square(count=32, side=32):
    """Dark tiles with one bright square, and its coverage."""
    tiles = torch.full((count, 1, side, side), 40, dtype=torch.uint8)
    coverage = torch.zeros((count, side, side), dtype=torch.uint8)
    for i in range(count):
        top, left = 4 + i % 7, 3 + i % 11
        tiles[i, 0, top : top + 8, left : left + 8] = 200
        coverage[i, top : top + 8, left : left + 8] = 255
    return tiles, coverage


def test_without_variation_it_is_the_networks_input():
    tiles, coverage = square()
    images, target = Augmentation(STILL, torch.Generator().manual_seed(0))(tiles, coverage)
    assert torch.allclose(images, centered(tiles), atol=1e-5)
    assert torch.allclose(target[:, 0], coverage.float() / 255, atol=1e-5)


@pytest.mark.parametrize("turns", [False, True])
def test_the_mask_goes_where_its_defect_goes(turns):
    tiles, coverage = square()
    config = AugmentationConfig(tone_share=0, noise_share=0, quarter_turns=turns, affine_share=1.0)
    images, target = Augmentation(config, torch.Generator().manual_seed(1))(tiles, coverage)
    brightness = (images - (40 - 128) / 128) / ((200 - 40) / 128)  # 1 in the square, 0 outside
    assert torch.allclose(brightness, target, atol=1e-3)
    assert not torch.allclose(target[:, 0], coverage.float() / 255, atol=0.2)


def test_flips_alone_are_exact():
    tiles, coverage = square()
    config = AugmentationConfig(affine_share=0, tone_share=0, noise_share=0)
    images, _ = Augmentation(config, torch.Generator().manual_seed(2))(tiles, coverage)
    original = centered(tiles)
    for moved, still in zip(images, original):
        choices = (still, still.flip(1), still.flip(2), still.flip(1, 2))
        assert any(torch.allclose(moved, choice, atol=1e-4) for choice in choices)


def test_tone_and_noise_leave_the_mask_and_stay_in_range():
    tiles, coverage = square()
    config = AugmentationConfig(flips=False, affine_share=0, tone_share=1, noise_share=1, brightness=0.5)
    images, target = Augmentation(config, torch.Generator().manual_seed(3))(tiles, coverage)
    assert torch.allclose(target[:, 0], coverage.float() / 255, atol=1e-5)
    assert images.min() >= -1 and images.max() <= 127 / 128
    assert not torch.allclose(images, centered(tiles), atol=0.05)


def framed(positives=5, negatives=27, side=32):
    tiles, coverage = square(positives + negatives, side)
    defective = torch.arange(positives + negatives) < positives
    return FramedSet(tiles, coverage, defective, torch.ones_like(defective), torch.arange(len(tiles)))


def test_batches_are_half_defective_and_use_every_good_tile():
    batches = BalancedBatches(framed(), batch_size=8, config=STILL, seed=0, device=torch.device("cpu"))
    epoch = list(batches.epoch(0))
    assert len(epoch) == batches.steps == 4
    assert all(batch.defective.sum() == 4 and len(batch.images) == 8 for batch in epoch)


def test_an_epoch_is_the_same_after_a_resume_and_another_is_not():
    def images(epoch, seed=0):
        made = BalancedBatches(
            framed(), batch_size=8, config=AugmentationConfig(), seed=seed, device=torch.device("cpu")
        )
        return torch.cat([batch.images for batch in made.epoch(epoch)])

    assert torch.equal(images(3), images(3))
    assert not torch.equal(images(3), images(4))
    assert not torch.equal(images(3), images(3, seed=1))
