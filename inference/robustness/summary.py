"""From results to one record for each system, condition and group, with intervals and differences to the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.results.summary import Summary, summarise
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.inference.robustness.bootstrap import interval, resampled_rates, summed_by
from lact_asr.metrics import is_collapsed

if TYPE_CHECKING:
    from lact_asr.inference.robustness.systems import Outcome

AVERAGE = "average"

# One utterance's results: one, or for the average one under each of its conditions.
Pooled = Sequence[UtteranceResult]


def summary_rows(
    outcomes: Mapping[str, Mapping[str, Outcome]],
    groups: Mapping[str, Sequence[int]],
    *,
    baseline: str,
    average: Sequence[str] = (),
    seed: int = 0,
    units: Sequence[Hashable] | None = None,
) -> list[dict]:
    """Sum up a run.

    Rates are over the utterances that *every* system recognised, so that all systems are measured on the same ones. The
    average pools an utterance's results under several conditions, and resamples them together.

    Args:
        outcomes: by system and condition; results in the same order everywhere.
        groups: positions of the utterances of each group.
        baseline: the system that the others are compared with.
        average: conditions of the row ``average``; none: no such row.
        seed: of the bootstrap.
        units: what each utterance is drawn with, as its speaker; None: each by itself.

    Returns:
        Records of plain JSON values; docs/robustness.md describes their keys.

    Raises:
        InputError: a group without an utterance that every system recognised.
    """
    pooled = {system: _pool(by_condition, average) for system, by_condition in outcomes.items()}
    rows = []
    for group, positions in groups.items():
        for condition in pooled[baseline]:
            of_group = {system: [pooled[system][condition][i] for i in positions] for system in pooled}
            drawn_with = [i if units is None else units[i] for i in positions]
            for row in _rows(of_group, baseline, seed, drawn_with, f"the group {group} under {condition}"):
                names = {"system": row["system"], "condition": condition, "group": group}
                memory = _peak_memory(outcomes[row["system"]], average if condition == AVERAGE else [condition])
                rows.append({**names, **row, "peak_memory_bytes": memory})
    return rows


def _pool(outcomes: Mapping[str, Outcome], average: Sequence[str]) -> dict[str, list[Pooled]]:
    """One system's results by condition and utterance; under `AVERAGE` those of several conditions together."""
    pooled = {condition: [(result,) for result in outcome.results] for condition, outcome in outcomes.items()}
    if average:
        pooled[AVERAGE] = list(zip(*(outcomes[condition].results for condition in average), strict=True))
    return pooled


def _peak_memory(outcomes: Mapping[str, Outcome], conditions: Sequence[str]) -> int | None:
    measured = [outcomes[condition].peak_memory_bytes for condition in conditions]
    return None if None in measured else max(measured)


def _rows(
    pooled: Mapping[str, Sequence[Pooled]], baseline: str, seed: int, units: Sequence[Hashable], where: str
) -> list[dict]:
    """A record for each system under one condition, for one group."""
    failed = {
        system: [any(r.failed for r in results) for results in utterances] for system, utterances in pooled.items()
    }
    usable = [position for position, some in enumerate(zip(*failed.values(), strict=True)) if not any(some)]
    if not usable:
        raise InputError(f"There is nothing to compare for {where}: no utterance was recognised by every system.")
    scored = {system: [utterances[position] for position in usable] for system, utterances in pooled.items()}
    errors = np.array([[_word_errors(results) for results in utterances] for utterances in scored.values()]).T
    words = np.array([sum(r.word_errors.reference_length for r in results) for results in scored[baseline]])
    errors, words = summed_by([units[position] for position in usable], errors, words)
    resampled = dict(zip(scored, resampled_rates(errors, words, seed).T, strict=True))
    summaries = {system: summarise(_flat(utterances)) for system, utterances in scored.items()}
    return [
        {
            "system": system,
            "utterances": len(usable),
            "failed": sum(failed[system]),
            **_error_rates(summaries[system], resampled[system]),
            **_differences(system, baseline, summaries, resampled),
            **_collapses_and_refusals(_flat(scored[system])),
            **_oracle(scored[system], summaries[system]),
            "real_time_factor": summaries[system].real_time_factor,
            "real_time_factor_ratio": _ratio(summaries[system].real_time_factor, summaries[baseline].real_time_factor),
        }
        for system in scored
    ]


def _flat(utterances: Sequence[Pooled]) -> list[UtteranceResult]:
    return [result for results in utterances for result in results]


def _word_errors(results: Pooled) -> int:
    return sum(result.word_errors.errors for result in results)


def _error_rates(summary: Summary, resampled: np.ndarray) -> dict:
    words = summary.words
    low, high = interval(resampled)
    return {
        "words": words.reference_length,
        "wer": words.rate,
        "wer_low": low,
        "wer_high": high,
        "cer": summary.characters.rate,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
    }


def _differences(
    system: str, baseline: str, summaries: Mapping[str, Summary], resampled: Mapping[str, np.ndarray]
) -> dict:
    """WER minus the baseline's, absolute and relative to it, with paired intervals; None for the baseline itself."""
    difference = relative = None
    absolute_interval = relative_interval = None
    if system != baseline:
        rate, baseline_rate = summaries[system].words.rate, summaries[baseline].words.rate
        difference = rate - baseline_rate
        relative = _ratio(difference, baseline_rate)
        with np.errstate(divide="ignore", invalid="ignore"):
            absolute_interval = interval(resampled[system] - resampled[baseline])
            relative_interval = interval(resampled[system] / resampled[baseline] - 1)
    low, high = absolute_interval or (None, None)
    relative_low, relative_high = relative_interval or (None, None)
    return {
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "relative_difference": relative,
        "relative_difference_low": relative_low,
        "relative_difference_high": relative_high,
    }


def _collapses_and_refusals(results: Sequence[UtteranceResult]) -> dict:
    """Shares of collapsed outputs, and of transcripts that TTT left as they were, by reason; None without TTT."""
    reasons = Counter(result.ttt_refusal for result in results if result.ttt_refusal)
    with_ttt = any(result.hypothesis_without_ttt is not None for result in results)
    return {
        "collapsed": sum(is_collapsed(result.reference, result.hypothesis) for result in results) / len(results),
        "ttt_refused": reasons.total() / len(results) if with_ttt else None,
        "ttt_refusals": {reason: count / len(results) for reason, count in reasons.most_common()},
    }


def _oracle(utterances: Sequence[Pooled], summary: Summary) -> dict:
    """What the system's unadapted transcripts score, and the better transcript of each utterance; None without TTT."""
    if summary.words_without_ttt is None:
        return {"wer_without_ttt": None, "wer_oracle": None, "oracle_gap": None}
    best = sum(min(r.word_errors.errors, r.word_errors_without_ttt.errors) for r in _flat(utterances))
    oracle = best / summary.words.reference_length
    return {
        "wer_without_ttt": summary.words_without_ttt.rate,
        "wer_oracle": oracle,
        "oracle_gap": summary.words.rate - oracle,
    }


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
