"""Parity: every number against a case small enough to count by hand, and laws that hold for all cases."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge import cli
from edge.backend import find_backend
from edge.errors import BackendUnavailableError, InputError
from edge.folders import jsonable
from fabricated import mask, predictions, write_samples
from targets import parity
from targets.gate import Budget, budget_from, configure_budget
from targets.parity import Candidate, align, compare, load_or_produce, mask_agreement, names
from targets.report.text import number, table

GOLDEN = Path(__file__).parents[1] / "golden" / "parity_keys.json"
FULL, LEFT, NONE = mask("##../##.."), mask("#.../#..."), mask("..../....")


@pytest.fixture
def samples(tmp_path):
    """Three defective samples, then three good ones."""
    return write_samples(
        tmp_path / "data",
        {"d1.npy": FULL, "d2.npy": FULL, "d3.npy": FULL, "g1.npy": None, "g2.npy": None, "g3.npy": None},
    )


@pytest.fixture
def reference(samples):
    """Finds d1 and d2, misses d3; one false alarm, g3. Threshold 0."""
    return predictions(samples, [2, 1, -1, -2, -1, 1], [FULL, FULL, NONE, NONE, NONE, LEFT])


@pytest.fixture
def ours(samples):
    """d2 is newly missed, d3 is found after all; g1 is a new false alarm, g3 is no longer one."""
    return predictions(
        samples, [2.5, -0.5, 0, 0.25, -1, -3], [LEFT, FULL, FULL, LEFT, NONE, NONE], precision="int8"
    )


def one(reference, ours, samples, budget=None):
    return compare(reference, [Candidate("a", "openvino", "int8", ours)], samples, budget)["artifacts"][0]


def test_flips_are_counted_by_what_they_cost(reference, ours, samples):
    row = one(reference, ours, samples)
    assert (row["n"], row["flips"], row["new_misses"], row["new_false_alarms"]) == (6, 4, 1, 1)
    assert (row["misses"], row["false_alarms"]) == (1, 1)
    assert row["score_max_abs_diff"] == 4.0  # g3: 1 to -3


def test_a_score_on_the_threshold_is_defective(reference, samples):
    assert (
        predictions(samples, [0, 0, -1, -1, -1, -1], [NONE] * 6).verdicts.tolist()
        == [True, True] + [False] * 4
    )


def test_verdicts_compare_in_double_precision_as_the_inspector_does(samples):
    threshold = 0.1  # not a float32: the nearest float32 is larger
    stored = predictions(samples, [np.float32(0.1)] * 6, [NONE] * 6, threshold=threshold)
    assert stored.verdicts.all() == (float(np.float32(0.1)) >= threshold)
    below = float(np.nextafter(np.float64(np.float32(0.1)), 1))
    assert not predictions(samples, [np.float32(0.1)] * 6, [NONE] * 6, threshold=below).verdicts.any()


def test_mask_agreement_is_over_what_the_reference_calls_defective(reference, ours, samples):
    row = one(reference, ours, samples)
    # d1: 2 of 4 pixels, d2: 4 of 4, g3: 0 of 2; d3 and the good ones that full precision passes do not count.
    assert row["mask_agreement_iou"] == pytest.approx(6 / 10)
    assert row["mask_agreement_mean"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert row["mask_agreement_p10"] == pytest.approx(0.1)  # between 0 and 0.5, a fifth of the way
    assert row["mask_agreement_n"] == 3


def test_two_empty_masks_agree():
    agreement = mask_agreement([NONE, FULL], [NONE, LEFT])
    assert (agreement.iou, agreement.mean) == (0.5, 0.75)
    assert mask_agreement([NONE], [NONE]).iou == 1.0


def test_agreement_over_nothing_is_not_a_number():
    agreement = mask_agreement([], [])
    assert agreement.n == 0
    assert all(map(math.isnan, (agreement.iou, agreement.mean, agreement.p10)))


def test_deltas_are_the_artifact_minus_full_precision(reference, ours, samples):
    delta = one(reference, ours, samples)["delta"]
    # Full precision: TP d1 d2, FN d3, FP g3. Artifact: TP d1 d3, FN d2, FP g1. F1 is 2/3 for both.
    assert delta["f1"] == pytest.approx(0)
    assert delta["seg_recall"] == pytest.approx((0.5 + 0 + 1) / 3 - (1 + 1 + 0) / 3)
    assert delta["seg_miou"] == pytest.approx((0.5 + 0 + 1 + 0) / 4 - (1 + 1 + 0 + 0) / 4)


def test_no_positive_makes_ap_null_in_json(tmp_path):
    samples = write_samples(tmp_path, {"g1.npy": None, "g2.npy": None})
    good = predictions(samples, [-1, -2], [np.zeros((4, 4), bool)] * 2)
    row = json.loads(json.dumps(jsonable(one(good, good, samples)), allow_nan=False))
    assert row["delta"]["ap"] is None and row["mask_agreement_iou"] is None
    assert row["mask_agreement_n"] == 0 and row["passed"] is True and len(row["not_judged"]) == 3


def test_cross_compares_each_pair_on_the_samples_of_the_reference(reference, ours, samples):
    candidates = [Candidate(name, None, None, p) for name, p in (("a", ours), ("b", reference), ("c", ours))]
    result = compare(reference, candidates, samples)
    assert [(pair["a"], pair["b"], pair["flips"]) for pair in result["cross"]] == [
        ("a", "b", 4), ("a", "c", 0), ("b", "c", 4)
    ]  # fmt: skip
    assert (
        result["cross"][0]["mask_agreement_iou"]
        == result["cross"][2]["mask_agreement_iou"]
        == pytest.approx(0.6)
    )
    assert result["cross"][1]["mask_agreement_iou"] == 1


def test_keys_are_the_documented_ones(reference, ours, samples):
    keys = json.loads(GOLDEN.read_text())
    result = compare(reference, [Candidate(name, None, None, ours) for name in "ab"], samples)
    assert sorted(result) == keys["result"]
    assert sorted(result["reference"]) == keys["reference"]
    for row in result["artifacts"]:
        assert sorted(row) == keys["artifacts"]
        assert sorted(row["delta"]) == keys["delta"]
    assert sorted(result["cross"][0]) == keys["cross"]


def test_the_order_of_the_predictions_does_not_matter(reference, ours, samples):
    shuffled = [3, 0, 5, 1, 4, 2]
    turned = replace(
        ours,
        sample_ids=tuple(ours.sample_ids[i] for i in shuffled),
        image_sha256=tuple(ours.image_sha256[i] for i in shuffled),
        defect_logits=ours.defect_logits[shuffled],
        masks=tuple(ours.masks[i] for i in shuffled),
    )
    assert one(reference, turned, samples) == one(reference, ours, samples)


def _cut(p, keep):
    return replace(
        p,
        sample_ids=tuple(p.sample_ids[i] for i in keep),
        image_sha256=tuple(p.image_sha256[i] for i in keep),
        defect_logits=p.defect_logits[list(keep)],
        masks=tuple(p.masks[i] for i in keep),
        latency_ms=p.latency_ms[list(keep)],
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: _cut(p, [0, 1, 2, 3, 5]), "g2.npy"),
        (lambda p: _cut(p, [0, 1, 2, 2, 3, 4, 5]), "d3.npy"),
        (lambda p: replace(p, sample_ids=(*p.sample_ids[:5], "other.npy")), "g3.npy"),
        (lambda p: replace(p, image_sha256=("0" * 64, *p.image_sha256[1:])), "d1.npy"),
        (lambda p: replace(p, defect_logits=np.array([0, np.nan, 0, 0, 0, 0], np.float32)), "d2.npy"),
        (lambda p: replace(p, masks=(*p.masks[:3], np.zeros((3, 3), bool), *p.masks[4:])), "g1.npy"),
        (lambda p: replace(p, meta={**p.meta, "threshold": 0.1}), "threshold"),
        (lambda p: replace(p, meta={**p.meta, "mask_threshold": 0.5}), "mask_threshold"),
        (
            lambda p: replace(p, meta={k: v for k, v in p.meta.items() if k != "mask_threshold"}),
            "mask_threshold",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(reference, ours, samples, change, named):
    with pytest.raises(InputError) as caught:
        one(reference, change(ours), samples)
    assert named in str(caught.value)


def test_a_reference_of_another_data_set_is_refused(reference, ours, samples):
    with pytest.raises(InputError, match="the reference is not of the same samples"):
        compare(_cut(reference, [0, 1]), [Candidate("a", None, None, ours)], samples)


def test_an_image_that_changed_on_disk_is_refused(reference, ours, samples):
    np.save(samples[1].image, np.zeros((2, 4), np.uint8))
    with pytest.raises(InputError, match=r"another image of sample d2\.npy"):
        one(reference, ours, samples)


def test_two_artifacts_of_one_name_and_no_samples_are_refused(reference, ours, samples):
    with pytest.raises(InputError, match="same name"):
        compare(reference, [Candidate("a", None, None, ours)] * 2, samples)
    with pytest.raises(InputError, match="no sample"):
        compare(reference, [], [])


# The budget


NO_LIMIT = dict.fromkeys(
    ("max_flip_share", "max_new_misses", "min_mask_agreement", "max_f1_drop", "max_seg_recall_drop")
)


NO_OTHER_LIMIT = [
    word
    for name in ("--max-new-misses", "--min-mask-agreement", "--max-f1-drop", "--max-seg-recall-drop")
    for word in (name, "none")
]


def only(**limits):
    return Budget(**{**NO_LIMIT, **limits})


def test_flips_up_to_the_share_pass(reference, ours, samples):
    assert one(reference, ours, samples, only(max_flip_share=4 / 6))["passed"] is True
    row = one(reference, ours, samples, only(max_flip_share=0.66))
    assert row["passed"] is False
    assert row["reasons"] == ["4 of 6 verdicts flipped, allowed 3"]


@pytest.mark.parametrize(
    ("share", "n", "flips", "broken"),
    [
        (0.005, 20, 1, False),  # one on the threshold says nothing
        (0.005, 20, 2, True),
        (0.005, 400, 2, False),
        (0.005, 399, 2, True),
        (0.0, 400, 1, True),
        (0.0, 400, 0, False),
        (0.005, 0, 0, True),  # nothing was compared
    ],
)
def test_one_flip_or_the_share_whichever_is_more(share, n, flips, broken):
    row = {"n": n, "flips": flips, "new_misses": 0, "mask_agreement_iou": 1.0}
    row["delta"] = {"f1": 0.0, "seg_recall": 0.0}
    assert bool(only(max_flip_share=share).judge(row)) is broken


def test_what_passes_without_asking_for_anything():
    assert Budget() == Budget(0.005, 0, 0.97, 0.005, 0.005)
    parser = ArgumentParser()
    configure_budget(parser)
    assert budget_from(parser.parse_args([])) == Budget()
    lifted = [f"--{name}=none" for name in ("max-flips", "max-new-misses", "min-mask-agreement")]
    lifted += ["--max-f1-drop=none", "--max-seg-recall-drop=none"]
    assert budget_from(parser.parse_args(lifted)) == only()
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-flips", "few"])


@pytest.mark.parametrize(
    ("budget", "broken"),
    [
        (only(), False),
        (only(max_new_misses=1), False),
        (only(max_new_misses=0), True),
        (only(min_mask_agreement=0.6), False),
        (only(min_mask_agreement=0.61), True),
        (only(max_seg_recall_drop=0.17), False),
        (only(max_seg_recall_drop=0.16), True),
        (only(max_f1_drop=0.0), False),
    ],
)
def test_each_limit_is_checked_alone(reference, ours, samples, budget, broken):
    row = one(reference, ours, samples, budget)
    assert bool(row["reasons"]) is broken is not row["passed"]


def test_what_the_data_set_has_nothing_to_measure_on_is_said():
    row = {"n": 9, "flips": 0, "new_misses": 0, "mask_agreement_iou": None}
    row["delta"] = {"f1": math.nan, "seg_recall": None}
    assert Budget().judge(row) == []
    assert [said.split(":")[0] for said in Budget().not_judged(row)] == [
        "mask agreement", "change of F1", "change of Seg_Recall"
    ]  # fmt: skip
    assert only().not_judged(row) == []


@pytest.mark.parametrize(
    "limits", [{"max_flip_share": 2}, {"max_flip_share": math.nan}, {"max_new_misses": -1}]
)
def test_a_budget_that_means_nothing_is_refused(limits):
    with pytest.raises(InputError):
        Budget(**limits)


# Laws


def _case(draw, st, folder):
    shape = (3, 4)
    n = draw(st.integers(1, 6))
    bits = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda b: np.array(b).reshape(shape))
    truths = [draw(st.one_of(st.none(), bits)) for _ in range(n)]
    samples = write_samples(folder, {f"s{i}.npy": truth for i, truth in enumerate(truths)})
    scores = st.lists(st.integers(-8, 8).map(lambda k: k / 4), min_size=n, max_size=n)
    images = [np.load(sample.image).shape for sample in samples]

    def made():
        return predictions(samples, draw(scores), [np.resize(draw(bits), size) for size in images])

    return samples, made(), made(), made()


def test_laws(tmp_path):
    pytest.importorskip("hypothesis")
    from itertools import count

    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    number_of = count()

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data):
        samples, reference, a, b = _case(data.draw, st, tmp_path / str(next(number_of)))
        result = compare(reference, [Candidate("a", None, None, a), Candidate("b", None, None, b)], samples)
        swapped = compare(reference, [Candidate("b", None, None, b), Candidate("a", None, None, a)], samples)
        assert {**result["cross"][0], "a": "b", "b": "a"} == pytest.approx(swapped["cross"][0], nan_ok=True)
        itself = one(reference, reference, samples)
        assert itself["flips"] == 0 and itself["score_max_abs_diff"] == 0 and itself["passed"]
        assert itself["mask_agreement_iou"] in (1.0, pytest.approx(math.nan, nan_ok=True))
        assert all(change == 0 or math.isnan(change) for change in itself["delta"].values())
        for row, ours in zip(result["artifacts"], (a, b)):
            corrected = row["flips"] - row["new_misses"] - row["new_false_alarms"]
            label = np.array([sample.defective for sample in samples])
            right = (ours.verdicts == label) & (reference.verdicts != label)
            assert corrected == right.sum()
            found = (label & right).sum()
            before = int((label & ~reference.verdicts).sum())
            assert row["misses"] - before == row["new_misses"] - found
            assert 0 <= row["flips"] <= row["n"] == len(samples)
            if row["mask_agreement_n"]:
                assert row["mask_agreement_p10"] <= 1 and 0 <= row["mask_agreement_iou"] <= 1
        # Both alike against the reference at no flip: no cross flip either.
        flips = [row["flips"] for row in result["artifacts"]]
        assert abs(flips[0] - flips[1]) <= result["cross"][0]["flips"] <= sum(flips)

    holds()


# Files, names, the verb


def test_names_are_short_and_different():
    paths = [Path("x/openvino"), Path("x/edgetpu.rejected"), Path("device-7.npz")]
    assert names(paths) == ["openvino", "edgetpu.rejected", "device-7"]
    assert names([Path("/a/out"), Path("/b/out")]) == ["a/out", "b/out"]
    assert names([Path("/a/out"), Path("/a/out")]) == ["1:a/out", "2:a/out"]


def test_the_table_says_what_is_not_verified(reference, ours, samples):
    stand_in = replace(ours, meta={**ours.meta, "ran_on": {**ours.meta["ran_on"], "stand_in": True}})
    result = compare(reference, [Candidate("a", "edgetpu", "int8", stand_in)], samples)
    assert result["artifacts"][0]["stand_in"] is True
    lines = table(result["artifacts"]).splitlines()
    assert "stand-in, not verified on device" in lines[2] and lines[2].endswith("NO")
    assert number(math.nan) == number(None) == "n/a" and number(-0.0001, "+.3f") == "0.000"


def test_a_device_that_is_absent_is_replaced_only_where_it_may_be(make_artifact, samples, monkeypatch):
    asked = []

    def open_inspector(path, *, stand_in=False):
        asked.append(stand_in)
        if not stand_in:
            raise BackendUnavailableError("no device")
        return "the stand-in"

    monkeypatch.setattr(parity, "open_inspector", open_inspector)
    assert parity.open_here(make_artifact("edgetpu")) == "the stand-in"
    assert asked == [False, True]
    with pytest.raises(BackendUnavailableError):
        parity.open_here(make_artifact("edgetpu"), stand_in=False)
    with pytest.raises(BackendUnavailableError):  # OpenVINO has no stand-in
        parity.open_here(make_artifact("openvino"))
    assert asked == [False, True, False, False]


def test_a_missing_prediction_file_is_an_input_error(samples, tmp_path):
    with pytest.raises(InputError):
        load_or_produce(tmp_path / "nothing.npz", samples)


def _parity_command(*words):
    return cli.main(["parity", *map(str, words)])


@pytest.fixture
def files(reference, ours, samples, tmp_path):
    reference.save(tmp_path / "full.npz")
    reference.save(tmp_path / "same.npz")
    ours.save(tmp_path / "ours.npz")
    return SimpleNamespace(
        folder=tmp_path,
        rest=(
            "--reference",
            tmp_path / "full.npz",
            "--data",
            samples[0].image.parent,
            "--out",
            tmp_path / "out",
        ),
    )


def test_the_verb_writes_everything_and_says_who_fails(files, capsys):
    code = _parity_command(files.folder / "same.npz", files.folder / "ours.npz", *files.rest)
    assert code == 3
    written = json.loads((files.folder / "out" / "parity.json").read_text())
    assert [row["passed"] for row in written["artifacts"]] == [True, False]
    assert written["split"] == "test"
    out = files.folder / "out"
    assert sorted(p.name for p in (out / "predictions").iterdir()) == [
        "1-same.npz",
        "2-ours.npz",
        "reference.npz",
    ]
    assert "ours fails: 4 of 6" in (printed := capsys.readouterr().out) and "report.html" in printed
    assert (out / "report.html").is_file()
    # The prediction files that it wrote are as good as the ones that it got.
    again = _parity_command(
        out / "predictions" / "2-ours.npz", "--reference", out / "predictions" / "reference.npz",
        *files.rest[2:4], "--out", files.folder / "again", "--max-flips", 0.7, *NO_OTHER_LIMIT, "--json",
    )  # fmt: skip
    row = json.loads(capsys.readouterr().out)["artifacts"][0]
    assert again == 0 and row["passed"]
    assert row["mask_agreement_iou"] == written["artifacts"][1]["mask_agreement_iou"]


def test_what_export_rejected_does_not_pass_on_another_split(make_artifact, tmp_path, capsys):
    probe = find_backend("onnx").probe()
    if not probe.usable:
        pytest.skip(probe.reason)
    samples = write_samples(tmp_path / "data", {"d.npy": np.ones((32, 32), bool), "g.npy": None})
    gate = {"passed": False, "split": "val", "reasons": ["4 of 133 verdicts flipped, allowed 1"]}
    artifact = make_artifact("onnx", gate=gate)
    ours = load_or_produce(artifact, samples)
    full = replace(ours, meta={**ours.meta, "target": None, "precision": "fp32"})
    full.save(tmp_path / "full.npz")
    words = ("--reference", tmp_path / "full.npz", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert _parity_command(artifact, *words, "--json") == 3
    row = json.loads(capsys.readouterr().out)["artifacts"][0]
    assert row["flips"] == 0 and row["passed"] is False
    assert row["reasons"] == ["rejected by export on val: 4 of 133 verdicts flipped, allowed 1"]


@pytest.mark.parametrize(
    "words",
    [
        ("missing.npz", "--reference", "full.npz"),
        ("ours.npz", "--reference", "missing.npz"),
        ("same.npz", "--reference", "ours.npz"),  # int8 is not full precision
        ("broken.npz", "--reference", "full.npz"),
        ("empty", "--reference", "full.npz"),
    ],
)
def test_bad_input_is_exit_2_and_leaves_nothing(files, words, capsys):
    (files.folder / "broken.npz").write_bytes((files.folder / "ours.npz").read_bytes()[:200])
    (files.folder / "empty").mkdir()
    paths = [word if word.startswith("--") else files.folder / word for word in words]
    assert _parity_command(*paths, *files.rest[2:]) == 2
    assert not (files.folder / "out").exists()
    assert "parity" in capsys.readouterr().err


def test_an_existing_folder_is_refused_before_any_work(files, capsys):
    (files.folder / "out").mkdir()
    assert _parity_command(files.folder / "missing.npz", *files.rest) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "backend", "stand_in"),
    [("onnx", "onnx", False), ("edgetpu", "litert", True), ("openvino", "openvino", False)],
)
def test_an_artifact_is_predicted_through_the_runtime(target, backend, stand_in, make_artifact, tmp_path):
    import tiny

    probe = find_backend(backend).probe()
    if not probe.usable:
        pytest.skip(probe.reason)
    samples = write_samples(tmp_path / "data", {"d.npy": np.ones((32, 32), bool), "g.npy": None})
    for sample, kind in zip(samples, ("defective", "good")):
        np.save(sample.image, tiny.frame(kind))
    ours = load_or_produce(make_artifact(target), samples)
    assert ours.verdicts.tolist() == [True, False]
    assert ours.meta["target"] == target and ours.meta["ran_on"]["stand_in"] is stand_in
    full = predictions(samples, ours.defect_logits, ours.masks, threshold=0.5)
    row = compare(full, [Candidate("a", target, "int8", ours)], samples)["artifacts"][0]
    assert (row["flips"], row["mask_agreement_iou"], row["stand_in"]) == (0, 1.0, stand_in)


def test_align_changes_nothing_that_is_aligned(reference, ours, samples):
    again, candidates = align(reference, [Candidate("a", None, None, ours)], samples)
    assert again.sample_ids == reference.sample_ids
    assert np.array_equal(candidates[0].predictions.defect_logits, ours.defect_logits)
