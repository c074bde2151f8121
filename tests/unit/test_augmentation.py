"""Augmentation keeps image and mask aligned; batches are balanced, repeatable, and cut and pasted with their masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quantize.data.framed import FramedSet
from quantize.training.augmentation import Augmentation, AugmentationConfig, centered
from quantize.training.batches import BalancedBatches, center_weights
from quantize.training.deck import Deck
from quantize.training.defects import SMALLEST_DEFECT_PX, DefectConfig, SyntheticDefects, perlin

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
    images, target = Augmentation(STILL, torch.Generator().manual_seed(0))(tiles, coverage[:, None])
    assert torch.allclose(images, centered(tiles), atol=1e-5)
    assert torch.allclose(target[:, 0], coverage.float() / 255, atol=1e-5)


@pytest.mark.parametrize("turns", [False, True])
def test_the_mask_goes_where_its_defect_goes(turns):
    tiles, coverage = square()
    config = AugmentationConfig(tone_share=0, noise_share=0, quarter_turns=turns, affine_share=1.0)
    images, target = Augmentation(config, torch.Generator().manual_seed(1))(tiles, coverage[:, None])
    brightness = (images - (40 - 128) / 128) / ((200 - 40) / 128)  # 1 in the square, 0 outside
    assert torch.allclose(brightness, target, atol=1e-3)
    assert not torch.allclose(target[:, 0], coverage.float() / 255, atol=0.2)


def test_flips_alone_are_exact():
    tiles, coverage = square()
    config = AugmentationConfig(affine_share=0, tone_share=0, noise_share=0)
    images, _ = Augmentation(config, torch.Generator().manual_seed(2))(tiles, coverage[:, None])
    original = centered(tiles)
    for moved, still in zip(images, original):
        choices = (still, still.flip(1), still.flip(2), still.flip(1, 2))
        assert any(torch.allclose(moved, choice, atol=1e-4) for choice in choices)


def test_tone_and_noise_leave_the_mask_and_stay_in_range():
    tiles, coverage = square()
    config = AugmentationConfig(flips=False, affine_share=0, tone_share=1, noise_share=1, brightness=0.5)
    images, target = Augmentation(config, torch.Generator().manual_seed(3))(tiles, coverage[:, None])
    assert torch.allclose(target[:, 0], coverage.float() / 255, atol=1e-5)
    assert images.min() >= -1 and images.max() <= 127 / 128
    assert not torch.allclose(images, centered(tiles), atol=0.05)


def framed(positives=5, negatives=27, side=32):
    """The first tiles have a bright square, the others are plain."""
    tiles, coverage = square(positives + negatives, side)
    tiles[positives:], coverage[positives:] = 40, 0
    defective = torch.arange(positives + negatives) < positives
    return FramedSet(tiles, coverage, defective, torch.ones_like(defective), torch.arange(len(tiles)))


def batches(data=None, *, augmentation=STILL, share=0.0, seed=0, epoch_tiles=0):
    return BalancedBatches(
        data or framed(),
        batch_size=8,
        epoch_tiles=epoch_tiles,
        augmentation=augmentation,
        defects=DefectConfig(share=share),
        centers=True,
        seed=seed,
        device=torch.device("cpu"),
    )


def test_batches_are_half_defective_and_use_every_good_tile():
    made = batches()
    epoch = list(made.epoch(0))
    assert len(epoch) == made.steps == 4
    assert all(batch.truth.defective.sum() == 4 and len(batch.images) == 8 for batch in epoch)


def test_a_small_set_is_shown_more_often():
    made = batches(epoch_tiles=100)
    assert made.steps == 12 and sum(len(batch.images) for batch in made.epoch(0)) == 96


def test_an_epoch_is_the_same_after_a_resume_and_another_is_not():
    def images(epoch, seed=0):
        made = batches(augmentation=AugmentationConfig(), share=0.5, seed=seed)
        return torch.cat([batch.images for batch in made.epoch(epoch)])

    assert torch.equal(images(3), images(3))
    assert not torch.equal(images(3), images(4))
    assert not torch.equal(images(3), images(3, seed=1))


def test_a_defect_that_is_moved_out_of_sight_is_not_asked_for():
    corner = framed(positives=16, negatives=16)
    corner.coverage[:, 4:, 4:] = 0
    corner.coverage[:16, :4, :4] = 255
    near = replace(STILL, affine_share=1.0, scale=0.6)  # from 0.4 to 1.6 of the tile's side
    labels = set()
    for batch in batches(corner, augmentation=near).epoch(0):
        marked = (batch.truth.target >= 0.5).flatten(1).any(dim=1)
        assert torch.equal(batch.truth.defective.bool(), marked)
        labels |= set(marked[batch.tiles < 16].tolist())
    assert labels == {True, False}
    # Without a mask nobody knows where the defect is: the label stays.
    unknown = replace(corner, mask_known=~corner.defective, coverage=torch.zeros_like(corner.coverage))
    for batch in batches(unknown, augmentation=near).epoch(0):
        assert torch.equal(batch.truth.defective.bool(), batch.tiles < 16)


def test_the_middle_of_each_defect_counts_most():
    coverage = torch.zeros(40, 40, dtype=torch.uint8)
    coverage[2:7, 2:7] = 255
    coverage[20:40, 20:40] = 255
    weights = center_weights(coverage)
    assert weights[4, 4] == 255 and weights[30, 30] >= 250  # each piece has its own middle
    assert 0 < weights[2, 2] < 40 and 0 < weights[39, 39] < 40  # the frame's border is an edge too
    assert not weights[coverage == 0].any()
    assert not center_weights(torch.zeros(8, 8, dtype=torch.uint8)).any()


def test_synthetic_defects_turn_good_tiles_into_labelled_ones():
    data = framed(positives=4, negatives=60, side=64)
    pasted = 0
    for batch in batches(data, share=1.0).epoch(0):
        good = ~data.defective[batch.tiles]
        defective = batch.truth.defective.bool()
        area = (batch.truth.target >= 0.5).flatten(1).sum(dim=1)
        assert (area[defective & good] >= SMALLEST_DEFECT_PX).all() and not area[~defective].any()
        pasted += int((good & defective).sum())
    assert pasted >= 16
    assert all(bool(b.truth.defective[~data.defective[b.tiles]].sum() == 0) for b in batches(data).epoch(0))


@pytest.mark.parametrize("transplants", [0.0, 1.0])
def test_a_synthetic_defect_changes_the_tile_where_its_mask_is_and_nowhere_far_from_it(transplants):
    data = framed(positives=4, negatives=60, side=64)
    generator = torch.Generator().manual_seed(5)
    paste = SyntheticDefects(DefectConfig(1.0, transplants), data.tiles, data.coverage, torch.arange(4))
    good = torch.full((1, 64, 64), 90, dtype=torch.uint8)
    made = [result for result in (paste(good, generator) for _ in range(40)) if result is not None]
    assert len(made) >= 10
    for tile, coverage in made:
        changed = (tile.int() - good.int()).abs().amax(dim=0) > 4
        inside = coverage >= 128
        near = torch.nn.functional.max_pool2d(inside[None].float(), 9, 1, 4)[0] > 0
        assert not (changed & ~near).any()
        assert tile.dtype == coverage.dtype == torch.uint8
    assert sum(bool(((t.int() - 90).abs() > 4).any()) for t, _ in made) >= 0.8 * len(made)
    assert (good == 90).all()


def test_perlin_noise_is_smooth_and_zero_on_its_lattice():
    noise = perlin(64, 96, 4, torch.Generator().manual_seed(0))
    assert noise.shape == (64, 96) and 0.2 < noise.abs().max() <= 0.8
    assert noise[::16, ::24].abs().max() < 1e-6
    assert noise.diff(dim=0).abs().max() < 0.15


def test_the_deck_deals_evenly_and_hard_tiles_more_often():
    generator = torch.Generator().manual_seed(0)
    deck = Deck(torch.arange(100, 140))
    dealt = deck.deal(100, generator)
    counts = torch.bincount(dealt, minlength=140)[100:]
    assert int(counts.min()) >= 2 and int(counts.max()) <= 3
    hard = torch.arange(100, 110)
    for _ in range(6):
        deck.learn(torch.arange(100, 140), (torch.arange(100, 140) < 110).float())
    often = torch.cat([deck.deal(10, generator) for _ in range(60)])
    share = torch.isin(often, hard).float().mean()
    assert 0.3 < share < 0.8  # a quarter of the tiles
    assert torch.isin(torch.arange(100, 140), often).all()  # and none is forgotten
    other = Deck(torch.arange(100, 140))
    other.resume(deck.state())
    assert torch.equal(
        other.deal(10, torch.Generator().manual_seed(1)), deck.deal(10, torch.Generator().manual_seed(1))
    )
