"""Records of a run, by hand: rates, paired differences, controls, pooled averages and groups."""

import pytest

from lact_asr.errors import InputError
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.inference.robustness.summary import AVERAGE, summary_rows
from lact_asr.inference.robustness.systems import Outcome

REFERENCES = ("A B C D", "E F", "G H I J")
EVERYBODY = {"all": [0, 1, 2]}


def outcome(
    *texts: str, before: tuple[str, ...] | None = None, refusals: tuple[str | None, ...] = (None,) * 3, seconds=1.0
):
    """Results for `REFERENCES`; a text of None is a failure."""
    results = []
    for number, (reference, text, refusal) in enumerate(zip(REFERENCES, texts, refusals, strict=True)):
        if text is None:
            results.append(UtteranceResult(str(number), reference, message="not finite"))
            continue
        unadapted = None if before is None else before[number]
        result = UtteranceResult.scored(
            str(number), reference, text, unadapted, audio_seconds=2.0, compute_seconds=seconds, ttt_refusal=refusal
        )
        results.append(result)
    return Outcome(results, 5_000_000)


PLAIN = outcome("A B X D", "E F", "G H I")  # a substitution and a deletion
ADAPTED = outcome(
    "A B C D", "", "G G G G",
    before=("A B X D", "E F", "G H I"), refusals=(None, None, "no frame is anything but blank"), seconds=3.0,
)  # fmt: skip


def rows_by_system(outcomes, groups=EVERYBODY, **settings) -> dict:
    rows = summary_rows(outcomes, groups, baseline="plain", **settings)
    return {(row["system"], row["condition"], row["group"]): row for row in rows}


def test_utterances_of_one_unit_are_drawn_together():
    outcomes = {"plain": {"clean": PLAIN}, "adapted": {"clean": ADAPTED}}
    rows = rows_by_system(outcomes, units=["a", "a", "a"])
    for row in rows.values():  # one speaker, drawn once in every resample
        assert row["wer_low"] == row["wer_high"] == pytest.approx(row["wer"])
    two, alone = (rows_by_system(outcomes, units=units)["plain", "clean", "all"] for units in (["a", "b", "b"], None))
    assert two["wer"] == alone["wer"]
    assert (two["wer_low"], two["wer_high"]) == (
        pytest.approx(1 / 6),
        pytest.approx(1 / 4),
    )  # one error of four words, one of six
    assert (alone["wer_low"], alone["wer_high"]) != (two["wer_low"], two["wer_high"])


def test_rates_and_controls():
    rows = rows_by_system({"plain": {"clean": PLAIN}, "adapted": {"clean": ADAPTED}})
    plain, adapted = rows["plain", "clean", "all"], rows["adapted", "clean", "all"]
    assert (plain["utterances"], plain["words"], plain["wer"]) == (3, 10, 0.2)
    assert (plain["substitutions"], plain["deletions"], plain["insertions"]) == (1, 1, 0)
    assert plain["collapsed"] == 0
    assert plain["wer_low"] <= plain["wer"] <= plain["wer_high"]
    assert (adapted["wer"], adapted["deletions"], adapted["substitutions"]) == (0.5, 2, 3)
    assert adapted["collapsed"] == pytest.approx(2 / 3)
    assert adapted["ttt_refused"] == pytest.approx(1 / 3)
    assert adapted["ttt_refusals"] == {"no frame is anything but blank": pytest.approx(1 / 3)}
    assert adapted["wer_without_ttt"] == 0.2
    assert adapted["wer_oracle"] == 0.1  # the first adapted, the second and the third not
    assert adapted["oracle_gap"] == pytest.approx(0.4)
    assert plain["ttt_refused"] is plain["wer_oracle"] is plain["oracle_gap"] is None
    assert (adapted["real_time_factor"], adapted["real_time_factor_ratio"]) == (1.5, 3.0)
    assert adapted["peak_memory_bytes"] == 5_000_000


def test_differences_are_to_the_baseline():
    rows = rows_by_system({"plain": {"clean": PLAIN}, "adapted": {"clean": ADAPTED}})
    adapted = rows["adapted", "clean", "all"]
    assert adapted["difference"] == pytest.approx(0.3)
    assert adapted["difference_low"] <= 0.3 <= adapted["difference_high"]
    assert adapted["relative_difference"] == pytest.approx(1.5)
    # Three utterances, one without an error: some resamples have a baseline of 0, and no ratio to it.
    assert adapted["relative_difference_low"] is adapted["relative_difference_high"] is None
    assert rows["plain", "clean", "all"]["difference"] is rows["plain", "clean", "all"]["difference_low"] is None


def test_two_equal_systems_differ_by_exactly_nothing():
    rows = rows_by_system({"plain": {"clean": PLAIN}, "twin": {"clean": PLAIN}})
    twin = rows["twin", "clean", "all"]
    assert (twin["difference"], twin["difference_low"], twin["difference_high"]) == (0, 0, 0)


def test_the_average_pools_conditions_by_utterance():
    conditions = {"noise:20": PLAIN, "noise:10": outcome("A B C D", "E", "G"), "clean": outcome(*REFERENCES)}
    rows = rows_by_system({"plain": conditions}, average=("noise:20", "noise:10"))
    average = rows["plain", AVERAGE, "all"]
    assert average["wer"] == pytest.approx(
        (rows["plain", "noise:20", "all"]["wer"] + rows["plain", "noise:10", "all"]["wer"]) / 2
    )
    assert (average["words"], average["utterances"]) == (20, 3)
    # One resample in 27 is the third utterance three times, with its errors under both conditions.
    assert average["wer_high"] == pytest.approx(4 / 8)


def test_groups_and_failures():
    broken = outcome(None, "E F", "G H I J")
    rows = rows_by_system(
        {"plain": {"clean": PLAIN}, "broken": {"clean": broken}}, {"all": [0, 1, 2], "second": [1], "rest": [0, 2]}
    )
    assert {name: rows["broken", "clean", name]["utterances"] for name in ("all", "second", "rest")} == {
        "all": 2, "second": 1, "rest": 1,
    }  # fmt: skip
    assert (rows["broken", "clean", "all"]["failed"], rows["plain", "clean", "all"]["failed"]) == (1, 0)
    assert rows["plain", "clean", "all"]["wer"] == pytest.approx(1 / 6)  # over what both recognised
    assert rows["plain", "clean", "second"]["wer"] == 0
    assert rows["plain", "clean", "rest"]["wer"] == 0.25
    with pytest.raises(InputError, match="nothing to compare for the group first under clean"):
        rows_by_system({"plain": {"clean": PLAIN}, "broken": {"clean": broken}}, {"first": [0]})


def test_a_memory_that_was_not_measured_stays_unknown():
    unknown = PLAIN._replace(peak_memory_bytes=None)
    rows = rows_by_system({"plain": {"a": PLAIN, "b": unknown}}, average=("a", "b"))
    assert rows["plain", "b", "all"]["peak_memory_bytes"] is rows["plain", AVERAGE, "all"]["peak_memory_bytes"] is None
