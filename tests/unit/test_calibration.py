"""Which photographs calibrate: both kinds, every defect type, nothing that judges."""

from __future__ import annotations

import numpy as np
import pytest

from fabricated import write_samples
from tiny_run import write_dataset

pytest.importorskip("torch", reason="targets need the toolkit")

from edge.preprocess import Framing, InputSpec
from edge.samples import read_samples
from quantize.errors import CalibrationError
from targets import calibration


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return read_samples(write_dataset(tmp_path_factory.mktemp("data") / "set"))


def test_half_are_good_and_every_defect_type_is_there(samples):
    train = [sample for sample in samples if sample.split == "train"]
    chosen = calibration.choose(train, 16)
    assert len(chosen) == len({sample.id for sample in chosen}) == 16
    assert sum(sample.defective for sample in chosen) == 8
    assert {sample.defect_type for sample in chosen if sample.defective} == {"bright", "dark"}


def test_small_and_large_defects_set_ranges_however_rare_they_are(tmp_path):
    """One pore and one stain among forty middling scratches of one type."""
    rows = {"pore.npy": 1, "stain.npy": 32 * 30, **{f"scratch-{i:02}.npy": 32 for i in range(40)}}
    masks = {name: np.arange(32 * 32).reshape(32, 32) < pixels for name, pixels in rows.items()}
    samples = write_samples(tmp_path / "set", {**masks, **{f"good-{i:02}.npy": None for i in range(40)}})
    for seed in range(10):
        chosen = {sample.id for sample in calibration.choose(samples, 8, seed)}
        assert {"pore.npy", "stain.npy"} <= chosen
        assert len(chosen) == 8 and sum("good" in name for name in chosen) == 4


def test_the_same_seed_chooses_the_same(samples):
    assert calibration.choose(samples, 16, seed=3) == calibration.choose(samples, 16, seed=3)
    assert calibration.choose(samples, 16, seed=3) != calibration.choose(samples, 16, seed=4)


def test_a_rare_kind_is_filled_up_with_the_other(samples):
    good = [sample for sample in samples if not sample.defective]
    bad = [sample for sample in samples if sample.defective][:2]
    chosen = calibration.choose(good + bad, 20)
    assert len(chosen) == 20
    assert sum(sample.defective for sample in chosen) == 2


@pytest.mark.parametrize("kind", ["none", "few", "all good"])
def test_unusable_sets_are_refused(samples, kind):
    chosen = {"none": [], "few": samples[:4], "all good": [s for s in samples if not s.defective]}[kind]
    with pytest.raises(CalibrationError) as caught:
        calibration.choose(chosen, 16)
    assert caught.value.exit_code == 2


def test_an_image_that_judges_may_not_calibrate_under_any_name(samples, tmp_path):
    copied = tmp_path / "other.pgm"
    copied.write_bytes(samples[0].image.read_bytes())
    from dataclasses import replace

    twin = replace(samples[1], id="other.pgm", image=copied)
    calibration.refuse_overlap(samples[:1], samples[1:5])
    with pytest.raises(CalibrationError, match="took part in calibration"):
        calibration.refuse_overlap(samples[:1], [*samples[1:5], twin])


def test_frames_and_digest_follow_the_images(samples):
    spec, framing = InputSpec(32, 32), Framing("resize")
    one = calibration.frame(samples[:3], spec, framing)
    assert one.tiles.shape == (3, 32, 32, 1)
    assert one.digest == calibration.frame(samples[:3], spec, framing).digest
    assert one.digest != calibration.frame(samples[1:4], spec, framing).digest
