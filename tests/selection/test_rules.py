import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import ConfigError
from imgtool.selection.candidates import aggregate, frontier
from imgtool.selection.rule_file import load_rule, names
from imgtool.selection.rules import select
from imgtool.selection.steps import required_gain
from imgtool.selection.winner import ranking_records
from tests.selection.making import run, winner

A, B, C = run("A", 0.0100, 4096), run("B", 0.0095, 16384), run("C", 0.0300, 512)


def test_rejected_ones_are_in_the_order_people_count():
    from imgtool.selection.candidates import natural

    names = ["AE_S10_ch2", "AE_S1_ch16", "AE_S9_ch16", "AE_S11_ch8", "9", "AE", "x²"]
    assert sorted(names, key=natural) == [
        *("9", "AE", "AE_S1_ch16", "AE_S9_ch16", "AE_S10_ch2", "AE_S11_ch8", "x²")
    ]


def test_efficiency_takes_the_smallest_within_the_threshold():
    selection = select([A, B, C], load_rule("efficiency"))
    assert selection.winner.candidate.name == "A"
    by_name = {v.candidate.name: v for v in selection.verdicts}
    assert not by_name["C"].is_eligible
    assert "above" in by_name["C"].reason
    assert by_name["B"].on_frontier
    (step,) = selection.steps
    assert (step.smaller, step.larger, step.growth) == ("A", "B", 4)
    assert step.gain == pytest.approx(0.05)
    assert step.is_worth_it is False


def test_absolute_thresholds():
    assert winner([A, B, C], "efficiency", "threshold=0.05") == "C"
    assert winner([A, B, C], "efficiency", "threshold=0.0096") == "B"
    decibel = [run("A", 0.5, 4, val_psnr=31.0), run("B", 0.4, 2, val_psnr=29.0)]
    assert winner(decibel, "efficiency", "threshold=30 dB") == "A"
    selection = select([A, B, C], load_rule("efficiency", ["threshold=0.001"]))
    assert selection.winner is None
    assert "closest is B" in selection.reason


def test_step_up_moves_only_while_it_is_worth_it():
    line = [run("S", 0.0140, 1000), run("M", 0.0120, 4000), run("L", 0.0115, 16000)]
    assert winner(line) == "S"
    assert winner(line, "efficiency", "step_up=true") == "M"  # 14 %, then 4 %
    rule = load_rule("efficiency")
    assert required_gain(4, rule) == pytest.approx(0.10)
    assert required_gain(2, rule) == pytest.approx(0.05)
    assert required_gain(16, rule) == pytest.approx(0.20)


def test_a_difference_inside_the_noise_is_a_tie():
    seeds = [run(f"a{i}", m, 8, group="a", num_parameters=9) for i, m in enumerate((0.1, 0.2, 0.3))]
    seeds += [run(f"b{i}", m, 8, group="b", num_parameters=5) for i, m in enumerate((0.15, 0.3))]
    selection = select(seeds, load_rule("best"))
    assert selection.winner.candidate.name == "b"  # fewer parameters decide
    assert list(selection.ties) == ["a"]
    assert "tie" in selection.reason
    assert selection.certainty.rivals == ["a"]


def test_seeds_give_means_and_sample_deviations():
    rule = load_rule("best", ["metric=val_mse"])
    (one,) = aggregate([run("x0", 0.1, group="x"), run("x1", 0.3, group="x")], rule)
    assert one.metrics["val_mse"] == pytest.approx(0.2)
    assert one.deviations["val_mse"] == pytest.approx(math.sqrt(0.02))
    assert one.runs[0].name == "x0"


def test_states_and_missing_metrics():
    others = [run("A", 0.1, 8), run("B", 0.01, 8, state="stopped"), run("C", None, 8)]
    others += [run("D", 0.01, 8, state="diverged"), run("E", 0.01)]
    selection = select(others, load_rule("efficiency"))
    assert selection.winner.candidate.name == "A"
    reasons = {v.candidate.name: v.reason for v in selection.verdicts}
    assert "unfinished" in reasons["B"]
    assert reasons["C"] == "has no finite val_mse"
    assert "diverged" in reasons["D"]
    assert reasons["E"] == "has no latent_dims"
    assert winner(others, "efficiency", "unfinished=use") == "B"


def test_the_dropped_are_not_unfinished():
    told = {"reason": "dropped at rung 1ep: val_mse 0.2, place 2 of 2", "dropped": {"rung": "1ep"}}
    fallen = [run(f"B{n}", 0.01, group="B", seed=n, state="dropped", facts=told) for n in (0, 1)]
    runs = [run("A", 0.1), *fallen]
    selection = select(runs, load_rule("best"))
    assert selection.winner.candidate.name == "A"
    assert selection.verdicts[1].reason == told["reason"]
    assert selection.verdicts[1].candidate.loss_told == "2 of 2 dropped"
    assert "unfinished" not in str([v.reason for v in selection.verdicts])
    records = [*ranking_records(selection)]
    assert [(r["rank"], r["state"], r["dropped"]) for r in records] == [
        (1, "completed", None), (None, "dropped", {"rung": "1ep"})
    ]  # fmt: skip
    assert winner(runs, "best", "unfinished=use") == "B"


def test_nan_and_unstable_policies():
    runs = [run("A", 0.1, num_nonfinite=2), run("B", 0.2), run("C", 0.05, num_spikes=3)]
    assert winner(runs, "best") == "C"
    assert winner(runs, "best", "unstable=reject") == "A"
    assert winner(runs, "best", "unstable=reject", "nan=reject") == "B"


def vae(mse=0.0104, smooth=0.9, active=8.0):
    facts = {"latent_shape": [8, 4, 4]}
    more = {"val_kld": 1.0, "midpoint_energy": smooth, "val_active_units": active}
    return run("V2", mse, facts=facts, **more)


def test_vae_test():
    plain = run("V1", 0.01, midpoint_energy=0.8)
    assert winner([plain, vae()], "vae-test") == "V2"
    assert winner([plain, vae(mse=0.0120)], "vae-test") == "V1"
    assert winner([plain, vae(mse=0.0120)], "vae-test", "margin=0.3") == "V2"
    assert winner([plain, vae(smooth=0.7)], "vae-test") == "V1"
    selection = select([plain, vae(active=1.0)], load_rule("vae-test"))
    assert selection.winner.candidate.name == "V1"
    assert "collapsed" in selection.reason
    assert winner([run("V1", 0.01), vae()], "vae-test") == "V1"  # nothing shows smoothness


def test_loss_tuning_lets_the_heads_decide_between_equals():
    runs = [run("F1", 0.0100), run("F2", 0.0101, val_seg_miou=0.5)]
    runs += [run("F3", 0.0200, val_seg_miou=0.9)]
    assert winner(runs, "loss-tuning") == "F2"
    assert winner(runs, "loss-tuning", "tolerance=0") == "F1"


def test_fid_wants_enough_images():
    runs = [run("A", None, fid=3.0, num_images=100), run("B", None, fid=9.0, num_images=5000)]
    assert winner(runs, "fid") == "B"


def test_best_knows_the_direction():
    runs = [run("A", 0.1, val_psnr=20.0), run("B", 0.2, val_psnr=25.0)]
    assert winner(runs, "best", "metric=val_psnr") == "B"


points = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20)


def candidates(pairs):
    return [run(f"E{i:02d}", q / 100, s) for i, (q, s) in enumerate(pairs)]


@given(points)
def test_frontier_against_brute_force(pairs):
    pool = aggregate(candidates(pairs), load_rule("best", ["metric=val_mse"]))

    def at(c):
        return c.metrics["val_mse"], c.metrics["latent_dims"]

    def beaten(c):
        mine = at(c)
        return any(
            o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in (at(other) for other in pool)
        )

    found = frontier(pool, lambda c: at(c)[0], lambda c: at(c)[1])
    assert {c.name for c in found} == {c.name for c in pool if not beaten(c)}


@given(points, st.integers(0, 99), st.sampled_from(["efficiency", "best"]), st.booleans())
def test_a_dominated_newcomer_and_the_order_change_nothing(pairs, pick, rule, step_up):
    sets = ["step_up=true"] if step_up and rule == "efficiency" else []
    known = candidates(pairs)
    first = winner(known, rule, *sets)
    beaten = known[pick % len(known)]
    for name in ("A", "Z"):
        worse = run(name, beaten.metrics["val_mse"] * 1.01, beaten.metrics["latent_dims"] + 1)
        assert winner([*known, worse], rule, *sets) == first
    shuffled = random.Random(pick).sample(known, len(known))
    assert select(shuffled, load_rule(rule, sets)) == select(known, load_rule(rule, sets))


def test_every_shipped_rule_loads():
    assert names() == [
        "bd-rate",
        "best",
        "edit",
        "efficiency",
        "fid",
        "generation",
        "loss-tuning",
        "vae-test",
    ]
    assert all(load_rule(name).description for name in names())


def test_rule_files_are_strict(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rule: mine\nmetric: val_mse\nthreshhold: 3\n")
    with pytest.raises(ConfigError, match="mine.yaml:3: unknown key threshhold") as caught:
        load_rule(str(path))
    assert "threshold" in caught.value.hint
    for bad in ("unfinished: maybe", "threshold: soon", "metric: colour", "choose: weighted"):
        path.write_text(f"rule: mine\n{bad}\n")
        with pytest.raises(ConfigError):
            load_rule(str(path))


def test_a_wrong_value_names_its_key_once():
    for word in ("lost_seeds=-1", "lost_seeds=1.5", "threshold=soon", "choose=x", "margin=x"):
        with pytest.raises(ConfigError) as caught:
            load_rule("best", [word])
        key = word.partition("=")[0]
        assert str(caught.value).startswith(f"--set {key}: ")
        assert str(caught.value).count(key) == 1
        assert key in caught.value.hint


def test_weights(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("choose: weighted\nweights: {val_mse: 1.0, latent_dims: 0.5}\n")
    runs = [run("A", 0.01, 400), run("B", 0.03, 100)]  # 0.01 * 20 against 0.03 * 10
    assert winner(runs, str(path)) == "A"
    assert winner(runs, str(path), "weights={val_mse: 1.0, latent_dims: 1.0}") == "B"
