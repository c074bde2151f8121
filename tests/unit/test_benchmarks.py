"""The analysis behind `make bench-quality`, on made-up tables, and its runner with a verb that trains nothing."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results_file
from benchmarks import tables as results_tables
from benchmarks.quality import __main__ as command
from benchmarks.quality import runs, tables
from benchmarks.quality.analysis import analyse
from benchmarks.quality.bootstrap import difference, group_weights
from benchmarks.quality.picture import draw_recall_by_area
from benchmarks.quality.report import rows as report_rows
from benchmarks.quality.runs import SOURCES, Record, RunError, RunStore, training_code_differs
from benchmarks.quality.sample_table import SampleTable, read_table
from benchmarks.quality.strata import area_quartiles, defect_types, recalls
from benchmarks.quality.systems import BASELINE, DEFAULT, Plan, System, default_systems, systems
from benchmarks.quality.weighted_metrics import RocCounts, false_alarms, measure
from edge.samples import read_samples
from fabricated import predictions as make_predictions
from quantize.metrics import Overlap, decision_metrics
from tiny_run import write_dataset


def make_table(seed: int = 0, groups: int = 30, shift: float = 1.5, overlap: float = 0.5) -> SampleTable:
    """Parts photographed three times, a third of them defective; labels and truths depend on nothing but the size."""
    count = 3 * groups
    number = np.arange(count)
    defective = (number // 3) % 3 == 0
    random = np.random.default_rng(seed)
    truth = np.where(defective, 20 * (1 + number), 0).astype(float)
    truth[0] = 0  # one empty mask
    predicted = np.where(defective, truth * 0.8, random.integers(0, 30, count)).round()
    score = (random.normal(size=count) + shift * defective).round(1)  # rounded, so that scores are equal
    return SampleTable(
        sample=np.array([f"{n}.png" for n in number]),
        group=np.array([f"part-{n // 3}" for n in number]),
        defect_type=np.where(defective, np.where(number % 2, "crack", "blowhole"), ""),
        defective=defective,
        score=score,
        verdict=score >= 0.7,
        known=number != 9,  # one defective photograph without a mask file
        intersection=np.minimum(np.floor(overlap * truth), predicted),
        predicted=predicted,
        truth=np.where(number == 9, 0.0, truth),
        pixels=np.full(count, 10_000.0),
    )


def picked(table: SampleTable, which: list[int]) -> SampleTable:
    return SampleTable(**{name: getattr(table, name)[which] for name in SampleTable.__dataclass_fields__})


def make_record(table: SampleTable, seed: int, label: str = "one", **training) -> Record:
    facts = {
        "model": {"name": label},
        "input": {"width": 256},
        "framing": {"mode": "resize"},
        "training": {
            "epochs_done": 30,
            "seed": seed,
            "pretrained": "pretrained encoder from /somewhere/net.tflite",
            "ran_on": {"device": "cpu"},
            **training,
        },
        "starts": [{"commit": "abc1234", "threads": 2, "jobs": 1}],
        "speed": {"images_per_s": 90.0, "data_share": 0.01, "minutes": 12.0},
    }
    return Record(f"{label}-{seed}", seed, facts, {"val": table, "test": table})


class TestMetrics:
    @pytest.mark.parametrize("seed", range(4))
    def test_with_weights_of_one_they_are_the_toolkits_metrics(self, seed):
        table = make_table(seed)
        counts = [
            Overlap(int(a), int(b), int(c), int(d)) if known else None
            for a, b, c, d, known in zip(
                table.intersection, table.predicted, table.truth, table.pixels, table.known
            )
        ]
        wanted = decision_metrics(table.defective, table.score, 0.7, counts)
        got = measure(table, np.ones((1, len(table))))
        for name in ("ap", "auroc", "recall", "f1", "misses", "false_alarms"):
            assert got[name][0] == pytest.approx(wanted["sample"][name]), name
        for name in ("seg_miou", "seg_recall", "miou", "mpa"):
            assert got[name][0] == pytest.approx(wanted["seg"][name]), name

    def test_a_weight_of_two_is_the_photograph_twice_and_of_zero_not_at_all(self):
        table = make_table(3)
        weights = np.random.default_rng(1).integers(0, 4, (5, len(table))).astype(float)
        alarms = np.arange(5.0)
        got = measure(table, weights, alarms)
        for draw, counts in enumerate(weights.astype(int)):
            repeated = picked(table, np.repeat(np.arange(len(table)), counts))
            wanted = measure(repeated, np.ones((1, len(repeated))), alarms[draw : draw + 1])
            for name in got:
                assert got[name][draw] == pytest.approx(wanted[name][0]), name

    def test_recall_at_equal_false_alarms_is_read_off_the_roc(self):
        table = picked(make_table(), [0, 1, 2, 3, 4, 5])  # three defective ones, then three good ones
        table = SampleTable(**{**vars(table), "score": np.array([5.0, 3.0, 1.0, 4.0, 2.0, 0.0])})
        roc = RocCounts(table, np.ones((4, 6)))
        assert roc.recall_at(np.array([0.0, 1.0, 2.0, 9.0])).tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])

    def test_equal_scores_cannot_be_told_apart_by_a_threshold(self):
        table = SampleTable(**{**vars(make_table()), "score": np.zeros(90)})
        assert measure(table, np.ones((1, 90)), np.zeros(1))["recall_equal_alarms"][0] == 0
        assert measure(table, np.ones((1, 90)))["auroc"][0] == 0.5

    def test_a_draw_without_positives_is_undefined_and_not_zero(self):
        table = make_table()
        got = measure(table, (~table.defective)[None].astype(float))
        assert all(np.isnan(got[name][0]) for name in ("ap", "auroc", "recall", "seg_recall", "positive_iou"))

    def test_iou_on_positives_does_not_ask_the_verdict(self):
        table = make_table()
        never = SampleTable(**{**vars(table), "verdict": np.zeros(len(table), bool)})
        ones = np.ones((1, len(table)))
        assert measure(never, ones)["positive_iou"] == measure(table, ones)["positive_iou"] > 0
        assert measure(never, ones)["seg_miou"] == 0

    def test_a_table_survives_json(self):
        table = make_table()
        again = read_table(json.loads(json.dumps(table.as_dict())))
        for name in SampleTable.__dataclass_fields__:
            assert np.array_equal(getattr(again, name), getattr(table, name)), name


class TestBootstrap:
    def test_photographs_of_one_part_are_drawn_together(self):
        weights = group_weights(make_table().group, 50, np.random.default_rng(0))
        of_parts = weights.reshape(50, 30, 3)
        assert (of_parts == of_parts[:, :, :1]).all()
        assert (of_parts[:, :, 0].sum(axis=1) == 30).all()

    def test_parts_photographed_more_often_tell_no_more(self):
        values = np.random.default_rng(0).normal(size=40)
        once = group_weights(np.arange(40).astype(str), 4000, np.random.default_rng(1))
        many = group_weights(np.repeat(np.arange(40), 6).astype(str), 4000, np.random.default_rng(1))
        spread_once = (once @ values / 40).std()
        spread_many = (many @ np.repeat(values, 6) / 240).std()
        assert spread_many == pytest.approx(spread_once)

    def test_a_system_cannot_be_told_from_itself(self):
        draws = {seed: (0.9, np.random.default_rng(seed).normal(0.9, 0.1, 500)) for seed in (0, 1, 2)}
        found = difference(draws, draws, np.random.default_rng(0))
        assert (found.value, found.low, found.high) == (0, 0, 0)
        assert not found.distinguishable

    def test_a_difference_from_one_lucky_seed_is_none(self):
        worse = {seed: (0.5, np.full(500, 0.5)) for seed in (0, 1, 2)}
        lucky = {**worse, 2: (0.9, np.full(500, 0.9))}
        better = {seed: (0.6 + 0.01 * seed, np.full(500, 0.6 + 0.01 * seed)) for seed in (0, 1, 2)}
        assert not difference(lucky, worse, np.random.default_rng(0)).distinguishable
        assert difference(better, worse, np.random.default_rng(0)).distinguishable

    def test_equal_systems_are_told_apart_about_as_rarely_as_promised(self):
        random = np.random.default_rng(0)
        parts = np.repeat(np.arange(40), 6).astype(str)

        def told_apart(groups) -> float:
            weights = np.concatenate([np.ones((1, 240)), group_weights(groups, 300, random)])
            weights /= weights.sum(axis=1, keepdims=True)
            times = 0
            for _ in range(200):
                systems = []
                for _ in range(2):  # each takes to some parts, each training is a little lucky
                    taste = np.repeat(random.normal(size=40), 6)
                    means = [
                        weights @ (taste + random.normal(0.1 * random.normal(), 1, 240)) for _ in range(3)
                    ]
                    systems.append({seed: (mean[0], mean[1:]) for seed, mean in enumerate(means)})
                times += difference(*systems, random).distinguishable
            return times / 200

        assert told_apart(parts) < 0.12
        # Drawing photographs as if each were a part of its own promises too much: the test can fail.
        assert told_apart(np.arange(240).astype(str)) > 0.2

    def test_only_seeds_that_both_have_are_compared(self):
        ours = {seed: (1.0, np.ones(10)) for seed in (0, 1)}
        theirs = {seed: (0.0, np.zeros(10)) for seed in (1, 2)}
        assert difference(ours, theirs, np.random.default_rng(0)).seeds == (1,)
        assert difference(ours, {5: (0.0, np.zeros(10))}, np.random.default_rng(0)) is None


class TestStrata:
    def test_quarters_hold_every_masked_photograph_once(self):
        table = make_table()
        quarters = area_quartiles(table)
        chosen = np.array([quarter.chosen for quarter in quarters])
        assert (chosen.sum(axis=0) == table.masked).all()
        assert chosen.sum(axis=1).tolist() == [7, 7, 7, 7]
        largest_below = [table.truth[q.chosen].max() for q in quarters[:-1]]
        smallest_above = [table.truth[q.chosen].min() for q in quarters[1:]]
        assert all(a < b for a, b in zip(largest_below, smallest_above))
        assert quarters[0].what == f"area {table.truth[table.masked].min():.0f} to 525 px"

    def test_types_count_the_photographs_without_a_mask_too(self):
        table = make_table()
        types = {one.key: one for one in defect_types(table)}
        assert sorted(types) == ["type-blowhole", "type-crack"]
        assert sum(one.chosen.sum() for one in types.values()) == table.defective.sum() == 30

    def test_seg_recall_of_a_stratum_counts_misses_as_nothing(self):
        table = make_table()
        table = SampleTable(**{**vars(table), "verdict": np.zeros(len(table), bool)})
        assert recalls(table, defect_types(table)[0]) == (0.0, 0.0)


class TestReport:
    def records(self, ours=3.0, theirs=1.0, seeds=(0, 1, 2)):
        return {
            BASELINE: {
                s: make_record(make_table(s, shift=theirs, overlap=0.3), s, "pixel-only") for s in seeds
            },
            DEFAULT: {s: make_record(make_table(s, shift=ours, overlap=0.8), s) for s in seeds},
        }

    def rows(self, records, speed=None):
        return {row["id"]: row for row in report_rows(systems("gradnorm", 1), records, speed, None)}

    def test_values_and_differences_are_means_over_seeds(self):
        records = self.records()
        rows, analysis = self.rows(records), analyse(records, "test", draws=20)
        aps = list(analysis.of_seeds(DEFAULT, "ap").values())
        baseline = list(analysis.of_seeds(BASELINE, "ap").values())
        assert rows["sample-centric.ap"]["value"] == pytest.approx(np.mean(aps))
        assert f"sd {np.std(aps, ddof=1):.3g}, seeds 0, 1, 2" == rows["sample-centric.ap"]["note"]
        gained = rows["sample-centric.ap.minus.baseline"]
        assert gained["value"] == pytest.approx(np.mean(aps) - np.mean(baseline))
        assert gained["passed"] is True and "not distinguishable" not in gained["note"]

    def test_what_cannot_be_told_apart_has_not_passed(self):
        row = self.rows(self.records(ours=1.0))["sample-centric.ap.minus.baseline"]
        assert row["value"] == 0
        assert row["passed"] is False
        assert "not distinguishable" in row["note"]

    def test_what_was_not_run_says_so_and_has_neither_passed_nor_failed(self):
        rows = self.rows(self.records())
        for id in (
            "weak.ap",
            "plain-cam.runs",
            "weak.positive_iou.over.plain-cam",
            "pixel-confidence.miou.minus.baseline",
        ):
            assert (
                rows[id]["value"] is None and rows[id]["passed"] is None and rows[id]["note"] == "not run"
            ), id
        assert rows["weak.runs"]["value"] is None
        assert "weak.f1" not in rows
        assert rows["speed.images_per_s"]["note"] == "not run"

    def test_fewer_seeds_are_named(self):
        rows = self.rows(self.records(seeds=(0, 2)))
        assert rows["sample-centric.ap"]["note"].endswith("seeds 0, 2 only")
        assert rows["sample-centric.ap.minus.baseline"]["note"].endswith("seeds 0, 2 only")
        assert rows["sample-centric.runs"]["value"] == 2

    def test_equal_false_alarms_need_the_baseline(self):
        records = self.records()
        table = records[BASELINE][0].tables["test"]
        allowed = false_alarms(table, np.ones((1, len(table))))
        analysis = analyse(records, "test", draws=5)
        ours = records[DEFAULT][0].tables["test"]
        wanted = RocCounts(ours, np.ones((1, len(ours)))).recall_at(allowed)[0]
        assert analysis.of_seeds(DEFAULT, "recall_equal_alarms")[0] == wanted
        del records[BASELINE]
        rows = self.rows(records)
        assert rows["sample-centric.recall_equal_alarms"]["value"] == "undefined"
        assert rows["sample-centric.recall_equal_alarms.minus.baseline"]["passed"] is None

    def test_another_recipe_other_code_and_other_seeds_are_said(self):
        records = self.records()
        records[DEFAULT][1] = make_record(make_table(1), 1, rate=0.1)
        note = self.rows(records)["sample-centric.runs"]["note"]
        assert "the training code has changed since" in note
        assert "the seeds were not trained alike" in note
        assert "differs from the baseline in model.name" in note
        assert "abc1234" in note and "/somewhere" not in note

    def test_code_that_trains_is_compared_with_the_commit_and_unknown_is_different(self):
        assert training_code_differs("abc1234-dirty") and training_code_differs("0" * 40)
        clean = subprocess.run(
            ["git", "status", "--porcelain", "--", *SOURCES],
            cwd=results_file.ROOT,
            capture_output=True,
            text=True,
        )
        if clean.returncode != 0 or clean.stdout:
            pytest.skip("the code that trains is not as committed, or there is no git here")
        assert not training_code_differs("HEAD")

    def test_what_is_in_another_split_too_is_left_out_beside_the_numbers(self):
        records = self.records()
        table = records[DEFAULT][0].tables["test"]
        leaked = sorted(set(table.group[table.defective]))[:3]
        kept = ~np.isin(table.group, leaked)
        rows = {
            row["id"]: row
            for row in report_rows(
                systems("gradnorm", 1), {DEFAULT: {0: records[DEFAULT][0]}}, None, None, leaked
            )
        }
        row = rows["sample-centric.unleaked_recall"]
        chosen = kept & table.defective
        assert row["value"] == pytest.approx((table.verdict & chosen).sum() / chosen.sum())
        assert all(group in row["note"] for group in leaked)
        assert "without leaks" in tables.quality_section(list(rows.values()))
        assert "without leaks" not in tables.quality_section(list(self.rows(records).values()))

    def test_a_profile_becomes_rows(self):
        profile = {
            "images_per_s": {"as trained": 30.0},
            "shares": {"batch norm, forward": 0.1},
            "threads": 2,
            "commit": "abc1234",
        }
        rows = {row["id"]: row for row in report_rows(systems("gradnorm", 1), {}, None, profile)}
        assert rows["profile.as-trained"]["value"] == 30.0 and "abc1234" in rows["profile.as-trained"]["note"]
        assert rows["profile.batch-norm-forward"]["value"] == 0.1

    def test_runs_on_different_photographs_are_refused(self):
        records = self.records()
        records[DEFAULT][1] = make_record(make_table(1, groups=29), 1)
        with pytest.raises(ValueError, match="different data"):
            analyse(records, "test")

    def test_speed_is_judged_on_two_cores_only(self):
        record = make_record(make_table(), 0)
        assert self.rows({}, record)["speed.images_per_s"]["passed"] is True
        record.facts["starts"][-1]["threads"] = 16
        row = self.rows({}, record)["speed.images_per_s"]
        assert row["value"] == 90 and row["passed"] is None and "the bar is for two cores" in row["note"]

    def test_an_ablation_is_what_the_default_is_not(self):
        def ids(*defaults):
            return {system.id for system in systems(*defaults)} & {
                "gradient-0", "gradient-1", "balance-fixed", "balance-gradnorm"
            }  # fmt: skip

        assert ids("gradnorm", 1.0) == {"gradient-0", "balance-fixed"}
        assert ids("fixed", 0.5) == {"gradient-0", "gradient-1", "balance-gradnorm"}
        assert {"baseline", "sample-centric"} < {system.id for system in default_systems()}


class TestTables:
    def rows(self):
        return report_rows(systems("gradnorm", 1), TestReport().records(), None, None)

    def test_every_system_has_a_line_and_its_numbers(self):
        rows = self.rows()
        text = tables.systems_table(rows, ("ap", "misses"))
        assert len(text.splitlines()) == 2 + len(systems("gradnorm", 1))
        assert "| `weak` | not run | not run |  |" in text
        ap = next(row for row in rows if row["id"] == "sample-centric.ap")
        assert f"| `sample-centric` | 3 | {ap['value']:.3f} |" in text

    def test_the_section_shows_intervals_strata_and_bars(self):
        text = tables.quality_section(self.rows())
        assert "| `sample-centric` | `baseline` | +0" in text
        assert "| crack | 15 |" in text and "| area 525 to " in text
        assert (
            "| pixel-confidence: mIoU minus that of baseline, `test` | not run | >= +0.0144 (1.44 points) |"
            in text
        )

    def test_nothing_run_is_a_table_too(self):
        text = tables.quality_section(report_rows(systems("gradnorm", 1), {}, None, None))
        assert text.count("not run") > 10

    def test_only_what_is_between_the_markers_changes(self):
        text = "a\n<!-- quality -->\nold\n<!-- /quality -->\nb\n"
        wanted = "a\n<!-- quality -->\nnew\n<!-- /quality -->\nb\n"
        assert results_tables.between_markers(text, "quality", "new") == wanted
        assert results_tables.between_markers("no markers", "quality", "new") == "no markers"

    def test_the_picture_depends_on_the_rows_alone(self, tmp_path):
        pytest.importorskip("matplotlib")
        rows = self.rows()
        assert draw_recall_by_area(rows, tmp_path / "a.svg") and draw_recall_by_area(rows, tmp_path / "b.svg")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        assert not draw_recall_by_area(
            report_rows(systems("gradnorm", 1), {}, None, None), tmp_path / "c.svg"
        )


class FakeVerbs:
    """`edgeqc train` and `edgeqc predict` that write what those write, and count how often they were asked."""

    def __init__(self, data: Path, failing: str = "") -> None:
        self.data, self.failing = data, failing
        self.asked: Counter[str] = Counter()

    def __call__(self, *words, threads, log, keep_open) -> int:
        self.asked[words[0]] += 1
        text = [str(word) for word in words]
        said = dict(zip(text, text[1:]))  # each word -> the one after it
        out = Path(said["--out"])
        log.write_text("said something\n")
        if self.failing and self.failing in str(out):
            return 1
        if words[0] == "train":
            out.mkdir()
            training = {"seed": int(said["--seed"]), "epochs_done": int(said["--epochs"]), "seconds": 60.0}
            facts = {"model": {}, "input": {}, "framing": {}, "decision": {}, "created": "now"}
            (out / "run.json").write_text(json.dumps({**facts, "training": training}))
            epochs = [
                {"epoch": number, "images_per_s": speed, "data_share": share}
                for number, (speed, share) in enumerate(
                    [(50, 0.4), (95, 0.1), (90, 0.1), (100, 0), (110, 0)], 1
                )
            ]
            (out / "metrics.json").write_text(json.dumps({"history": epochs}))
            return 0
        samples = read_samples(self.data, said["--split"])
        scores = [1.0 if sample.defective else -1.0 for sample in samples]
        masks = [np.zeros((48, 48), bool) for _ in samples]
        make_predictions(samples, scores, masks).save(out)
        return 0


class TestRunStore:
    plan = Plan(System("weak", "weak", ("--weak",)), 1, 5)

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory) -> Path:
        return write_dataset(tmp_path_factory.mktemp("data") / "tiny")

    def store(self, tmp_path, data, **changes) -> RunStore:
        return RunStore(tmp_path / "work", data, threads=1, verb=FakeVerbs(data, **changes))

    def test_what_was_made_is_never_made_again(self, tmp_path, data):
        store = self.store(tmp_path, data)
        assert store.made(self.plan) is None
        record = store.make(self.plan)
        assert store.make(self.plan).facts == record.facts
        assert store.verb.asked == {"train": 1, "predict": 2}
        waited = (0.4 / 50 + 0.1 / 95 + 0.1 / 90) / sum(1 / speed for speed in (50, 95, 90, 100, 110))
        assert record.speed == {
            "images_per_s": 97.5,
            "data_share": pytest.approx(waited),
            "minutes": 1.0,
        }
        assert len(record.commits) == 1
        table = record.tables["test"]
        assert (table.verdict == table.defective).all() and table.truth[table.defective].tolist() == [196] * 5

    def test_other_words_are_another_run(self):
        labels = {
            self.plan.label,
            Plan(self.plan.system, 2, 5).label,
            Plan(self.plan.system, 1, 6).label,
            Plan(System("weak", "weak", ("--weak", "--size", "nano")), 1, 5).label,
        }
        assert len(labels) == 4
        assert self.plan.words == ("--weak", "--seed", "1", "--epochs", "5", "--time-limit-min", "0")

    def test_a_training_that_failed_goes_on_and_keeps_both_starts(self, tmp_path, data, monkeypatch):
        with pytest.raises(RunError, match="exit code 1"):
            self.store(tmp_path, data, failing="run").make(self.plan)
        monkeypatch.setattr(runs, "training_commit", lambda: "later")
        record = self.store(tmp_path, data).make(self.plan)
        assert len(record.commits) == 2 and record.commits[1] == "later"

    def test_a_prediction_that_failed_does_not_cost_the_training(self, tmp_path, data):
        with pytest.raises(RunError):
            self.store(tmp_path, data, failing="test.npz").make(self.plan)
        again = self.store(tmp_path, data)
        again.make(self.plan)
        assert again.verb.asked == {"predict": 1}

    def test_what_no_verb_makes_is_taken_as_another_program_left_it(self, tmp_path, data):
        store, plan = (
            self.store(tmp_path, data),
            replace(self.plan, system=System("cam", "", made_by_train=False)),
        )
        with pytest.raises(RunError, match="lacks run/run"):
            store.make(plan)
        folder = store.work / "runs" / plan.label
        asked = {"threads": 1, "log": folder / "log.txt", "keep_open": []}
        store.verb("train", "--out", folder / "run", "--seed", 1, "--epochs", 5, **asked)
        for split in ("val", "test"):
            store.verb("predict", folder / "run", "--split", split, "--out", folder / f"{split}.npz", **asked)
        before = dict(store.verb.asked)
        assert len(store.make(plan).tables["test"]) == 15
        assert store.verb.asked == before

    def test_two_processes_do_not_train_into_one_folder(self, tmp_path, data):
        store = self.store(tmp_path, data)

        def nested(*words, **options):
            with pytest.raises(RunError, match="another process"):
                store.make(self.plan)
            return 1

        with pytest.raises(RunError, match="exit code 1"):
            replace(store, verb=nested).make(self.plan)


class TestCommand:
    def test_one_failure_leaves_the_other_rows_and_is_reported(self, tmp_path, monkeypatch, capsys):
        data = write_dataset(tmp_path / "data")
        monkeypatch.setattr(command, "default_systems", lambda: systems("gradnorm", 1))
        monkeypatch.setattr(results_file, "RESULTS", tmp_path)
        profiled = []
        monkeypatch.setattr(command, "make_profile", lambda file, threads: profiled.append(file.name))
        fake = FakeVerbs(data, failing="baseline-seed0")
        words = ["--data", str(data), "--work", str(tmp_path / "work"), "--jobs", "2"]
        words += ["--rows", "baseline,sample-centric,speed", "--seeds", "0,1", "--epochs", "2"]
        assert command.main(words, fake) == 1
        assert "baseline-seed0" in capsys.readouterr().err
        rows = {row["id"]: row for row in json.loads((tmp_path / "quality.json").read_text())["rows"]}
        assert rows["baseline.runs"]["value"] == 1 and rows["sample-centric.runs"]["value"] == 2
        assert rows["speed.images_per_s"]["value"] == 97.5
        assert fake.asked == {"train": 5, "predict": 8} and profiled == ["profile.json"]
        fake.failing = ""
        assert command.main(words, fake) == 0
        assert fake.asked == {"train": 6, "predict": 10}

    def test_an_unknown_row_is_refused(self, monkeypatch, capsys):
        monkeypatch.setattr(command, "default_systems", lambda: systems("gradnorm", 1))
        with pytest.raises(SystemExit):
            command.main(["--rows", "strong"])
        assert "strong: wanted some of baseline," in capsys.readouterr().err
