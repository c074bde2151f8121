"""Input size and framing from the data: shapes, thin defects, the time a training has, and the line that says why."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.errors import InputError
from edge.images import write_png
from edge.preprocess import Framing, InputSpec
from edge.samples import Sample
from quantize.data.dataset import Dataset, open_dataset
from quantize.data.framed import frame_samples
from quantize.data.sizing import BASE_PIXELS, MOST_GROWTH, choose_input, thickest


@pytest.fixture
def make(tmp_path):
    """A data set whose defects are bars `thickness` pixels thick: 12 marked photographs, `good` others, no images."""

    def build(width, height, thickness, *, good=60, masks=True, sizes=None, split="train") -> Dataset:
        samples, found = [], []
        for i in range(12 + good):
            w, h = (width, height) if sizes is None else sizes[i % len(sizes)]
            mask = None
            if i < 12 and masks:
                mask = tmp_path / f"{i}.png"
                pixels = np.zeros((h, w), np.uint8)
                pixels[h // 2 : h // 2 + thickness, w // 8 : w - w // 8] = 255
                write_png(mask, pixels)
            samples.append(Sample(f"{i}.png", tmp_path / "none", mask, i < 12, split, str(i), "", i + 2))
            found.append((w, h))
        return Dataset(tmp_path, tuple(samples), "", (), 1, tuple(found))

    return build


@pytest.mark.parametrize(
    ("frame", "thickness", "expected"),
    [
        ((1024, 1024), 40, (256, 256)),  # MVTec AD
        ((512, 512), 30, (256, 256)),  # DAGM 2007
        ((500, 1250), 40, (160, 400)),  # KolektorSDD's shape
        ((230, 630), 20, (160, 416)),  # KolektorSDD2
        ((1280, 1024), 60, (288, 224)),  # a line camera
        ((128, 128), 12, (128, 128)),  # never larger than the photographs without a reason
    ],
)
def test_one_shape_is_kept_at_the_same_number_of_pixels(make, frame, thickness, expected):
    choice = choose_input(make(*frame, thickness))
    assert choice.size == expected and choice.framing == Framing("resize")


def test_it_grows_until_small_defects_fill_a_mask_cell(make):
    data = make(500, 1250, 8)
    choice = choose_input(data)
    width, height = choice.size
    assert choice.framing.mode == "resize" and width % 16 == height % 16 == 0
    assert 7 * min(width / 500, height / 1250) == pytest.approx(
        4, rel=0.1
    )  # one cell; even discs read one less
    assert "input pixels thick" in choice.explanation and "500 x 1250 pixels" in choice.explanation


def test_it_grows_no_further_than_the_cap_and_the_time_allow(make):
    few, many = (choose_input(make(1024, 1024, 5, good=good)).size for good in (60, 3000))
    assert few == (512, 512) and math.prod(few) == MOST_GROWTH * BASE_PIXELS
    assert BASE_PIXELS <= math.prod(many) < math.prod(few)  # LEAST_EPOCHS passes fit into 15 minutes


def test_small_photographs_are_enlarged_only_for_thin_defects(make):
    assert choose_input(make(128, 128, 2)).size == (256, 256)


def test_tiles_only_where_resizing_loses_the_defects(make):
    lost = choose_input(make(2048, 2048, 4, good=20))
    assert lost.framing == Framing("tile", 32) and lost.size == (256, 256)
    assert (
        "3.0 input pixels thick" in lost.explanation
        and "resized to 512x512 they would keep 0.8" in lost.explanation
    )
    kept = choose_input(make(2048, 2048, 10, good=20))
    assert kept.framing.mode == "resize" and kept.size == (512, 512)
    many = choose_input(make(2048, 2048, 4, good=2000))
    assert many.framing.mode == "resize" and "too many to train on" in many.explanation


def test_mixed_shapes_become_a_square_or_what_they_have_in_common(make):
    mixed = choose_input(make(0, 0, 30, sizes=[(300, 400), (400, 300), (600, 250), (350, 350)]))
    assert mixed.size == (256, 256) and "mixed shape" in mixed.explanation
    tall = choose_input(make(0, 0, 30, sizes=[(300, 600), (300, 900), (300, 750)]))
    assert tall.size[1] > 1.5 * tall.size[0]


def test_without_masks_the_sizes_decide(make):
    choice = choose_input(make(500, 1250, 1, masks=False))
    assert choice.size == (256, 624) and "no mask says" in choice.explanation
    assert choose_input(make(500, 1250, 1, masks=False, good=20000)).size == (160, 400)


def test_what_is_given_is_kept(make):
    data = make(500, 1250, 8)
    assert choose_input(data, (64, 64), Framing("resize")).size == (64, 64)
    assert choose_input(data, None, Framing("tile", 8)) == choose_input(data, (256, 256), Framing("tile", 8))
    assert choose_input(make(96, 64, 8), None, Framing("exact")).size == (96, 64)
    with pytest.raises(InputError, match="does not fit") as error:
        choose_input(data, None, Framing("exact"))
    assert error.value.got == "500 x 1250 pixels"


def test_other_splits_are_not_looked_at(make):
    with pytest.raises(InputError, match="no sample of split 'train'"):
        choose_input(make(500, 1250, 8, split="test"))


@pytest.mark.parametrize("turn", [0, 45])
def test_the_thickness_of_a_scratch_does_not_depend_on_its_direction(turn):
    rows, columns = np.mgrid[-50:50, -50:50]
    angle = math.radians(turn)
    across = rows * math.cos(angle) + columns * math.sin(angle)
    assert thickest(abs(across) <= 3) == pytest.approx(7, abs=1)
    assert thickest(np.zeros((4, 4), bool)) == 0
    assert thickest(np.ones((1, 1), bool)) == 1


def test_training_takes_the_choice_and_records_it(tmp_path):
    torch = pytest.importorskip("torch")
    from quantize.data.synthetic import write_surfaces
    from quantize.run import open_run
    from quantize.training.config import TrainingConfig
    from quantize.training.job import Job, train

    torch.set_num_threads(1)
    data = write_surfaces(tmp_path / "surfaces", count=40, size=48, seed=0)
    config = TrainingConfig(epochs=1, epoch_tiles=0, batch_size=8)
    model = {"name": "sample-centric", "size": "nano"}
    train(Job(data=data, out=tmp_path / "run", model=model, pretrained="", config=config))
    choice = choose_input(open_dataset(data))
    run = open_run(tmp_path / "run")
    assert (run.input.width, run.input.height) == choice.size and run.framing == choice.framing
    assert run.facts["input_reason"] == choice.explanation


@pytest.mark.slow
def test_real_photographs(mtd):
    data = open_dataset(mtd)
    choice = choose_input(data)
    assert choice == choose_input(data)
    assert (choice.size, choice.framing) == ((256, 256), Framing("resize"))
    assert choose_input(open_dataset(mtd, masks=False)).size == (256, 256)
    framed = frame_samples(data.split("val")[:4], InputSpec(*choice.size), choice.framing)
    assert len(framed) == 4
