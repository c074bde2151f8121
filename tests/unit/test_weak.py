"""The parts of the training from labels alone: pooling, contrast, geometry, inpainting, cutting out, stages."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the toolkit trains")
pytest.importorskip("cv2", reason="the toolkit's opencv-python-headless")

import cv2
import torch

import tiny_run
from edge.errors import InputError
from edge.folders import write_json
from edge.images import read_image, write_png
from edge.samples import Sample, read_samples
from quantize.data.dataset import read_mask
from quantize.run import network_input
from quantize.training.config import TrainingConfig
from quantize.training.fit import make_fabric
from quantize.weak.activation import on_grid
from quantize.weak.classifier import (
    Focus,
    FocusClassifier,
    PlainClassifier,
    contrastive_loss,
    enlarge,
    pool,
)
from quantize.weak.extension import ExtensionConfig, extend, inpaint, paint_at_random
from quantize.weak.focus import FocusConfig, _Batches, _loss
from quantize.weak.photographs import Photographs
from quantize.weak.pictures import CELL_PX, COLUMNS, contact_sheet
from quantize.weak.pseudo import (
    PseudoConfig,
    add_votes,
    masks_from_evidence,
    write_dataset,
)
from quantize.weak.refinement import refine
from quantize.weak.stages import FACTS, Stages, read_facts

SIDE = 64


@pytest.fixture(scope="module")
def fabric():
    fabric = make_fabric(TrainingConfig(accelerator="cpu", precision="32-true"))
    fabric.launch()
    return fabric


def photograph(folder, name, spots=(), size=(SIDE, SIDE), defective=True):
    """A noisy grey surface with dark round ``spots`` (row, column, radius); returns sample and truth."""
    random = np.random.default_rng(len(name))
    image = random.integers(120, 136, size, dtype=np.uint8)
    truth = np.zeros(size, bool)
    rows, columns = np.indices(size)
    for row, column, radius in spots:
        truth |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    image[truth] = 40
    write_png(folder / name, image)
    return Sample(name, folder / name, None, defective, "train", name, "", 2), truth


def blurred(truth, strength=6.0):
    """Evidence as a classifier gives it: high on the defect, and past it on every side."""
    soft = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 4)
    return strength * (soft / soft.max()) - 1


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_poolings_lie_between_the_mean_and_the_maximum():
    evidence = torch.randn(3, 1, 16, 16) * 3
    mean, top, lse = (pool(evidence, how) for how in ("mean", "top", "lse"))
    highest = evidence.flatten(1).max(dim=1).values
    for value in (top, lse):
        assert (value > mean).all() and (value <= highest + 1e-5).all()
    assert torch.allclose(pool(torch.full((1, 1, 8, 8), 2.5), "lse"), torch.tensor([2.5]))
    with pytest.raises(ValueError, match="median"):
        pool(evidence, "median")


def test_contrast_wants_classes_together_and_apart():
    label = torch.tensor([0.0, 0.0, 1.0, 1.0])
    apart = torch.eye(2)[[0, 0, 1, 1]]
    mixed = torch.eye(2)[[0, 1, 0, 1]]
    assert contrastive_loss(apart, label, 0.2) < 0.05 < 2 < contrastive_loss(mixed, label, 0.2)
    alone = torch.nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    loss = contrastive_loss(alone, torch.tensor([0.0, 1.0, 2.0]), 0.2)
    loss.backward()
    assert loss == 0 and torch.isfinite(alone.grad).all()


def test_contrast_is_khoslas_equation():
    z = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    label, t = torch.tensor([0, 1, 0, 1, 1]), 0.3
    total = 0.0
    for i in range(5):
        others = [a for a in range(5) if a != i]
        whole = sum(torch.exp(z[i] @ z[a] / t) for a in others)
        partners = [p for p in others if label[p] == label[i]]
        total -= sum(torch.log(torch.exp(z[i] @ z[p] / t) / whole) for p in partners) / len(partners)
    assert torch.allclose(contrastive_loss(z, label, t), total / 5, atol=1e-5)


def test_enlarging_leaves_a_value_where_its_stride_computed_it():
    cells = torch.randn(1, 2, 5, 7)
    pixels = enlarge(cells, 8)
    assert pixels.shape == (1, 2, 40, 56)
    assert torch.allclose(pixels[:, :, ::8, ::8], cells, atol=1e-6)
    assert enlarge(cells, 1) is cells


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_evidence_has_the_stride_that_was_asked_for(stride):
    model = FocusClassifier(0.35, 3, stride).eval()
    with torch.no_grad():
        answer = model(torch.randn(2, 3, 32, 64))
    assert answer.evidence.shape == (2, 1, 32 // stride, 64 // stride)
    assert torch.allclose(answer.embedding.norm(dim=1), torch.ones(2), atol=1e-5)


def test_the_plain_map_is_exact():
    """Pooled features through the linear layer are the pooled map: what makes it a class activation map."""
    model = PlainClassifier(0.35, 1).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        features = model.encoder(x)[-1].mean(dim=(2, 3), keepdim=True)
        assert torch.allclose(model.evidence(features).flatten(), pool(model(x).evidence, "mean"), atol=1e-5)


def test_a_mirrored_view_comes_back_in_place():
    spec = network_input(32, 32, 1)
    evidence = torch.zeros(1, 8, 8)
    evidence[0, 2, 1] = 1  # in the mirror image, at the left
    pixels = on_grid(evidence, 4, spec, mirrored=True)[0]
    row, column = np.unravel_index(int(pixels.argmax()), (32, 32))
    assert (row, column) == (8, 31 - 4)
    larger = on_grid(torch.randn(1, 16, 16), 4, spec)
    assert larger.shape == (1, 32, 32)


def test_unsure_crops_teach_nothing():
    config = FocusConfig(contrast=0.0)
    label, evidence = torch.tensor([1.0, 0.0, 1.0]), torch.randn(3, 1, 4, 4)
    answer = Focus(evidence, torch.zeros(3, 4))
    some = _loss(answer, label, torch.tensor([1.0, 1.0, 0.0]), config)
    changed = Focus(torch.cat([evidence[:2], evidence[2:] + 100]), torch.zeros(3, 4))
    assert _loss(changed, label, torch.tensor([1.0, 1.0, 0.0]), config) == some
    assert _loss(changed, label, torch.ones(3), config) != some


def test_crops_show_the_peak_and_keep_the_label_of_the_sure(tmp_path):
    samples = [photograph(tmp_path, f"{i}.png", defective=bool(i % 2))[0] for i in range(8)]
    data = Photographs(samples, network_input(32, 32, 1))
    batches = _Batches(data, FocusConfig(batch_size=8), torch.Generator().manual_seed(0))
    for _ in range(50):
        y, x = torch.rand(2).tolist()
        top, left, height, width = batches._box(y, x, guided=True)
        assert 0 <= top <= y <= top + height <= 1 + 1e-6 and 0 <= left <= x <= left + width <= 1 + 1e-6
        assert 0.4 <= height <= 0.7
    batches.peaks = torch.tensor([[0.5, 0.5, -1.0]]).repeat(8, 1)  # nobody is sure of any peak
    images, label, known = batches.draw()
    assert images.shape == (8, 1, 32, 32) and images.abs().max() <= 1
    assert label.tolist() == [0, 1] * 4
    assert known.tolist() == [1, 0, 1, 0, 1, 1, 1, 1]  # the first half are crops


def test_a_crop_is_the_box_that_was_asked_for(tmp_path):
    sample, _ = photograph(tmp_path, "wide.png", [(10, 100, 5)], size=(40, 160))
    data = Photographs([sample], network_input(32, 32, 1))
    assert data.whole.shape == (1, 1, 32, 32)
    pixels = read_image(sample.image)[0:20, 80:120]
    assert abs(float(data.crop(0, (0.0, 0.5, 0.5, 0.25)).float().mean()) - pixels.mean()) < 1


def test_a_mask_ends_where_the_defect_ends(tmp_path):
    sample, truth = photograph(tmp_path, "a.png", [(20, 24, 5), (45, 50, 3)])
    evidence = blurred(truth)
    found = evidence >= 0
    mask = refine(read_image(sample.image)[:, :, None], evidence, 0.0)
    assert iou(found, truth) < 0.5
    assert iou(mask, truth) > 0.9


def test_colour_is_looked_at(tmp_path):
    truth = np.zeros((SIDE, SIDE), bool)
    truth[20:30, 20:32] = True
    image = np.full((SIDE, SIDE, 3), (60, 120, 180), np.uint8)
    image[truth] = (180, 120, 60)
    image += np.random.default_rng(0).integers(0, 8, image.shape, dtype=np.uint8)
    assert iou(refine(image, blurred(truth), 0.0), truth) > 0.9


def test_evidence_that_cannot_be_cut_out_stays():
    image = np.full((SIDE, SIDE, 1), 128, np.uint8)
    nothing = np.full((SIDE, SIDE), -1, np.float32)
    assert not refine(image, nothing, 0.0).any()
    assert refine(image, -nothing, 0.0).all()  # a find without a surface around it
    speck = nothing.copy()
    speck[5, 5:7] = 1
    assert refine(image, speck, 0.0).sum() == 2


def test_a_broad_defect_is_not_torn_into_pieces(tmp_path):
    sample, _ = photograph(tmp_path, "b.png")
    broad = np.full((SIDE, SIDE), -3, np.float32)
    broad[:, :30], broad[:, :20] = -1, 1
    spec = network_input(SIDE, SIDE, 1)
    (mask,) = masks_from_evidence([sample], [broad], spec, PseudoConfig())
    assert mask[:, :29].all() and not mask[:, 31:].any()


def test_masks_are_in_frame_coordinates(tmp_path):
    sample, truth = photograph(tmp_path, "c.png", [(30, 100, 6)], size=(60, 160))
    evidence = blurred(cv2.resize(truth.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA) > 0)
    config = PseudoConfig(broad_share=0.5)
    (mask,) = masks_from_evidence([sample], [evidence], network_input(SIDE, SIDE, 1), config)
    assert mask.shape == (60, 160) and iou(mask, truth) > 0.6


def test_a_round_hears_both_witnesses():
    evidence = np.array([[2.0, 0.5, -0.5, -3.0]], np.float16)
    no, yes = np.zeros((2, 8), bool), np.ones((2, 8), bool)
    (against,), (in_favour,) = (add_votes([evidence], [mask], 1.0) for mask in (no, yes))
    assert (against >= 0).tolist() == [[True, False, False, False]]
    assert (in_favour >= 0).tolist() == [[True, True, True, False]]
    half = yes.copy()
    half[:, 4:] = False
    assert np.allclose(add_votes([evidence], [half], 1.0)[0], [[3.0, 1.5, -1.5, -4.0]])


def test_painting_over_removes_the_defect_and_nothing_else(tmp_path):
    sample, truth = photograph(tmp_path, "d.png", [(20, 24, 5)])
    tile = torch.from_numpy(read_image(sample.image))[None]
    before = tile.clone()
    painted = inpaint(tile, truth)
    assert torch.equal(tile, before) and painted.shape == tile.shape
    assert painted[0].numpy()[truth].min() > 110
    far = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert np.array_equal(painted[0].numpy()[far], before[0].numpy()[far])


class Darkness(torch.nn.Module):
    """Sees the darkest place only: evidence 3 there, whatever else is dark is hidden by it."""

    def forward(self, x):
        dark = -x
        hidden = dark < dark.flatten(1).max(dim=1).values.view(-1, 1, 1, 1) - 0.05
        evidence = torch.where(hidden | (dark < 0.3), torch.full_like(dark, -2.0), torch.full_like(dark, 3.0))
        return SimpleNamespace(evidence=evidence)


def extended(fabric, folder, threshold=-5.0, good=None, **config):
    """Three spots, each darker than the next: one is found at a time."""
    sample, truth = photograph(folder, "e.png", [(12, 12, 4), (32, 32, 4), (50, 50, 4)])
    image = read_image(sample.image)
    image[:22][image[:22] < 100] = 10
    image[22:42][image[22:42] < 100] = 30
    image[42:][image[42:] < 100] = 50
    write_png(sample.image, image)
    data = Photographs([sample], network_input(SIDE, SIDE, 1))
    first = Darkness()((data.whole.float() - 128) / 128).evidence[:, 0].numpy().astype(np.float16)
    before = first.copy()
    result = extend(
        fabric,
        Darkness(),
        data,
        good or Photographs([photograph(folder, "good.png", defective=False)[0]], data.spec),
        first,
        0.0,
        threshold=threshold,
        stride=1,
        pooling="mean",
        config=ExtensionConfig(**config),
    )
    assert np.array_equal(first, before)
    return [bool(result.maps[0, place, place] > 0) for place in (12, 32, 50)], result, truth


def test_what_hides_behind_a_find_is_found_next(fabric, tmp_path):
    seen, result, truth = extended(fabric, tmp_path, rounds=2)
    assert seen == [True, True, True] and result.added == (1, 1)
    assert iou(result.maps[0] >= 0, truth) > 0.9


@pytest.mark.parametrize(
    ("bound", "seen"),
    [
        ({"rounds": 1}, [True, True, False]),
        ({"rounds": 5, "area": 0.03}, [True, True, False]),
        ({"rounds": 5, "area": 0.001}, [True, False, False]),
        ({"rounds": 5, "threshold": 0.0}, [True, False, False]),  # called good once the first is gone
    ],
)
def test_extension_is_bounded(fabric, tmp_path, bound, seen):
    assert extended(fabric, tmp_path, **bound)[0] == seen


def test_paint_that_looks_defective_on_good_parts_extends_nothing(fabric, tmp_path):
    """The control: where good photographs score as high behind the same paint, a find proves nothing."""
    surface, _ = photograph(tmp_path, "surface.png", defective=False)
    spec = network_input(SIDE, SIDE, 1)
    assert extended(fabric, tmp_path, good=Photographs([surface], spec), rounds=2)[0] == [True, True, True]
    dark, _ = photograph(tmp_path, "dark.png", [(50, 12, 6)], defective=False)
    assert extended(fabric, tmp_path, good=Photographs([dark], spec), rounds=2)[0] == [True, False, False]


def test_good_photographs_are_painted_in_places(tmp_path):
    sample, _ = photograph(tmp_path, "f.png", defective=False)
    tile = torch.from_numpy(read_image(sample.image))[None]
    shares = []
    for seed in range(20):
        painted = paint_at_random(tile, torch.Generator().manual_seed(seed))
        shares.append(float((painted != tile).float().mean()))
    assert 0 < min(shares) < max(shares) < 0.25
    assert torch.equal(painted, paint_at_random(tile, torch.Generator().manual_seed(19)))


def test_a_pseudo_data_set_is_a_data_set(tmp_path):
    data = tiny_run.write_dataset(tmp_path / "data", count=15)
    samples = [s for s in read_samples(data) if s.split != "test"]
    defective = [s for s in samples if s.defective]
    mask = np.zeros((48, 48), bool)
    mask[3:9, 5:7] = True
    empty = np.zeros_like(mask)
    (tmp_path / "pseudo").mkdir()
    write_dataset(tmp_path / "pseudo", samples, {defective[0].id: mask, defective[1].id: empty})
    written = read_samples(tmp_path / "pseudo")
    assert [(s.defective, s.split, s.group) for s in written] == [
        (s.defective, s.split, s.group) for s in samples
    ]
    assert [s.image.read_bytes() for s in written] == [s.image.read_bytes() for s in samples]
    found = [s for s in written if s.mask is not None]
    assert [s.id.endswith(defective[0].id) for s in found] == [True]
    assert np.array_equal(read_mask(found[0]), mask)


def test_stages_are_kept_whole_and_gone_on_from(tmp_path):
    out, calls = tmp_path / "run", []

    def work(folder):
        calls.append(folder)
        (folder / "result").write_text("whole")
        return {"value": len(calls)}

    def killed(folder):
        (folder / "result").write_text("half")
        raise KeyboardInterrupt

    stages = Stages(out, {"seed": 0})
    stages.open()
    stages.run("1-first", work)
    with pytest.raises(KeyboardInterrupt):
        stages.run("2-second", killed)
    assert not (stages.folder / "2-second").exists()
    (stages.folder / ".2-second.left").mkdir()  # what SIGKILL leaves

    again = Stages(out, {"seed": 0})
    again.open()
    assert not list(again.folder.glob(".*"))
    assert (again.run("1-first", work) / "result").read_text() == "whole"
    again.run("2-second", work)
    assert len(calls) == 2 and read_facts(again.folder / "1-first")["value"] == 1
    assert list(again.facts()) == ["1-first", "2-second"]


def test_a_training_stage_is_done_once_its_facts_are_written(tmp_path):
    stages = Stages(tmp_path / "run", {})
    stages.open()
    with pytest.raises(KeyboardInterrupt):
        stages.train("4-segmenter", lambda folder: (folder.mkdir(), (_ for _ in ()).throw(KeyboardInterrupt)))
    assert not (stages.folder / "4-segmenter" / FACTS).exists()
    stages.train("4-segmenter", lambda folder: {"went_on": folder.exists()})
    assert read_facts(stages.folder / "4-segmenter") == {"went_on": True}


def test_stages_of_another_training_are_refused(tmp_path):
    Stages(tmp_path / "run", {"seed": 0, "data": "a"}).open()
    with pytest.raises(InputError) as refused:
        Stages(tmp_path / "run", {"seed": 1, "data": "a"}).open()
    assert "seed" in str(refused.value) and "data" not in refused.value.wanted
    (tmp_path / "other.weak").mkdir()
    with pytest.raises(InputError, match="in the way"):
        Stages(tmp_path / "other", {}).open()
    write_json(tmp_path / "other.weak" / "settings.json", {})
    Stages(tmp_path / "other", {}).open()


def test_the_sheet_shows_photographs_and_outlines(tmp_path):
    found = [photograph(tmp_path, f"{i}.png", [(30, 20 + i, 8)], size=(48, 80)) for i in range(10)]
    samples, masks = [sample for sample, _ in found], [truth for _, truth in found]
    contact_sheet(tmp_path / "sheet.png", samples, masks, [~mask for mask in masks])
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * CELL_PX, COLUMNS * CELL_PX, 3)
    first = sheet[:CELL_PX, :CELL_PX].astype(int)
    assert ((first[..., 0] - first[..., 2]) > 100).sum() > 50  # an outline in colour on a grey photograph


def test_no_photograph_is_upset_by_settings_written_as_json(tmp_path):
    stages = Stages(tmp_path / "run", {"size": (256, 256), "config": {"crop_side": (0.4, 0.7)}})
    stages.open()
    again = Stages(tmp_path / "run", {"size": (256, 256), "config": {"crop_side": (0.4, 0.7)}})
    again.open()  # tuples became lists in the file
    assert json.loads((stages.folder / "settings.json").read_text())["size"] == [256, 256]
