"""Sentences under a table: how much was measured, and what its figures do not say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from t3d.evaluation.metrics import AUP_ACCURACY_DROP, AUP_ALPHA
from t3d.evaluation.report.measurements import Measurement, grouped
from t3d.evaluation.results import EvalResult
from t3d.evaluation.settings import DYNAMIC, STATIC

COST = (
    "tokens/s: of all requests together. Latency: median (95th percentile) seconds from a request's admission to its "
    "last token, in the company that it was decoded in. Steps: denoising steps a response. TPF: tokens per forward, "
    "all forwards counted. Length: tokens a response."
)
SHARPNESS = (
    "pass@k: the chance that one of k responses is right. maj@n: that the most frequent answer of n responses is, ties "
    "broken by lot. Answers: different ones to a problem. Texts: different responses, in percent of the responses to a "
    "problem. Nats: mean -log(confidence) a token, the temperature and filters that it was drawn with counted in."
)
PAIRED = (
    "Change: bootstrap over problems, drawn for both models at once. Won, lost: problems that only it, or only the "
    "other, gets right; p: McNemar's exact test of those, two-sided, for this comparison alone. Both take the two "
    "models as they are: what another training seed would give is not in them."
)
AUP = (
    "A curve's points are (TPF r, accuracy y in percent) in the order of r, without those whose accuracy is more than "
    f"{AUP_ACCURACY_DROP:g} points below the first one's. AUP = r_1 y_1 + the sum over i > 1 of (r_i - r_(i-1)) "
    f"(y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2, where W(y) = min(exp(-{AUP_ALPHA:g} (1 - y / y_max)), 1) and y_max is the "
    "highest accuracy on the benchmark among all that is compared here, so that it changes with the company "
    "(Qian et al. 2025, arXiv 2601.07568)."
)


def amounts(measurements: Iterable[Measurement]) -> str:
    """How many problems and responses each benchmark's figures rest on, and what graded them."""
    groups = grouped(measurements, lambda each: each.benchmark).items()
    told = [f"{benchmark}: {amount(own[0])}, graded by {own[0].result.grader}" for benchmark, own in groups]
    return "; ".join(told) + "."


def amount(measurement: Measurement) -> str:
    """Problems and responses of a measurement."""
    setting = measurement.setting
    problems = f"{setting.num_problems:,} problem{'s' if setting.num_problems != 1 else ''}"
    return problems if setting.num_samples == 1 else f"{problems} with {setting.num_samples} responses each"


def undecided(measurements: Iterable[Measurement], place: Callable[[Measurement], str]) -> list[str]:
    """Where the best accuracy is not clearly the best: it and the next lie inside each other's interval.

    Args:
        measurements: of a table.
        place: names where in the table a measurement competes.
    """
    groups = grouped(measurements, place).items()
    close = [name for name, group in groups if len(group) > 1 and _is_close(group)]
    return [f"Too close to call, the best two inside each other's 95% interval: {'; '.join(close)}."] if close else []


def confident_rules(measurements: Iterable[Measurement]) -> list[str]:
    """Where nats are less than the entropy of what was drawn from, since drawn tokens were chosen by confidence."""
    rules = sorted({each.setting.rule for each in measurements} & {STATIC, DYNAMIC})
    told = "keeps the draws that it is sure of, so nats lie below the entropy of what was drawn from"
    return [f"{rule} {told}." for rule in rules]


def _is_close(group: Sequence[Measurement]) -> bool:
    best, following = sorted((each.setting for each in group), key=lambda each: -each.accuracy)[:2]
    return following.interval[1] >= best.accuracy and following.accuracy >= best.interval[0]


def unequal_conditions(measurements: Iterable[Measurement]) -> list[str]:
    """On which benchmarks speed does not compare, since not all methods ran under the same conditions."""
    benchmarks = grouped(measurements, lambda each: each.benchmark).items()
    told = grouped(benchmarks, lambda item: _who_ran_how(item[1]))
    return [
        f"tokens/s and latency do not compare on {', '.join(name for name, _ in own)}: {who}."
        for who, own in told.items()
        if who
    ]


def _who_ran_how(measurements: Iterable[Measurement]) -> str:
    """The methods under each of the conditions; "" if those are the same for all."""
    conditions = grouped(measurements, lambda each: _conditions(each.result))
    if len(conditions) == 1:
        return ""
    return "; ".join(f"{', '.join(_methods(own))} on {words}" for words, own in conditions.items())


def _conditions(result: EvalResult) -> str:
    batch = "batches as memory allows" if result.batch_size is None else f"batches of {result.batch_size}"
    return f"{result.device}, {result.dtype}, {result.backend} backend, {batch}"


def _methods(measurements: Iterable[Measurement]) -> list[str]:
    return list(dict.fromkeys(each.result.name for each in measurements))
