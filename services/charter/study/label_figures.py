"""What came of the labels of a study: who labelled how much, what nobody learns from, and how far labellers agree."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from charter.evaluation.compare.agreement import Agreement, agreements
from charter.evaluation.figures.rows import Judgement
from charter.held_out import prompt_key
from charter.outcomes import failure_name, win
from charter.rpc.messages import chat_messages
from charter.spec.comparison_checks import ALL
from charter.storage.comparisons import LABELLED
from charter.study.label_log import Labels
from charter.study.labels import Labeller, StudyLabels
from charter.study.pairs import Chosen
from charter.study.spec import IMPORTED, PEOPLE, StudySpec
from charter.v1 import types_pb2


def labels_in_figures(spec: StudySpec, chosen: Chosen, labels: Labels, bound: Sequence[str] = ()) -> StudyLabels:
    """The pairs that all have labelled, and the figures of the labels.

    ``bound`` are the pairs that arms have learned from already, if there are any: then they stay these.
    """
    given = {name: {key for key, one in of_one.items() if one.outcome in LABELLED} for name, of_one in labels.items()}
    left_out = Counter(chosen.left_out)
    kept: list[types_pb2.Comparison] = []
    for pair in chosen.pairs:
        missing = [name for name in labels if pair.id not in given[name]]
        if pair.id in bound or (not bound and not missing):
            kept.append(pair)
        else:
            left_out[f"without a label by {missing[0]}" if missing else "not among those of earlier arms"] += 1
    return StudyLabels(
        ids=tuple(pair.id for pair in kept),
        held_out=sum(pair.split == types_pb2.SPLIT_HELD_OUT for pair in kept),
        dimensions=dict(Counter(pair.dimension for pair in kept)),
        left_out=dict(left_out),
        labellers=tuple(_labeller(spec, name, chosen.pairs, labels[name]) for name in labels),
        agreement=tuple(_agreement(spec, chosen.pairs, labels)),
    )


def _labeller(
    spec: StudySpec, name: str, pairs: Sequence[types_pb2.Comparison], labels: Mapping[str, types_pb2.Comparison]
) -> Labeller:
    given = [one for pair in pairs if (one := labels.get(pair.id)) is not None]
    good = [one for one in given if one.outcome in LABELLED]
    known = (one.failure_kind for label in given if label.outcome not in LABELLED for one in label.judgements[:1])
    kind = name if name in (IMPORTED, PEOPLE) else "scorer" if name in {one.name for one in spec.scorers} else "judge"
    lengths = [(len(one.answer_a.text) - len(one.answer_b.text), win(one.probability_a)) for one in good]
    longer = [won if more > 0 else 1.0 - won for more, won in lengths if more]
    return Labeller(
        name=name,
        kind=kind,
        model=_joined(one.labeller for one in good),
        method=_joined(one.method for one in good),
        constitution_digest=_joined(one.constitution_digest for one in good),
        asked=len(given),
        labelled=len(good),
        failures=dict(Counter(map(failure_name, known))),
        longer=sum(longer) / len(longer) if longer else None,
    )


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) - {""}))


def _agreement(spec: StudySpec, pairs: Sequence[types_pb2.Comparison], labels: Labels) -> list[Agreement]:
    rows: dict[str, dict[str, list[Judgement]]] = {}
    several = len({pair.dimension for pair in pairs}) > 1
    for name, of_one in labels.items():
        rows[name] = {ALL: []} if several else {}
        for place, pair in enumerate(pairs):
            one = of_one.get(pair.id)
            if one is None or one.outcome not in LABELLED:
                continue
            prompt = prompt_key(chat_messages(pair.prompt))
            row = Judgement(prompt, pair.dimension, name, "a", "b", place, one.probability_a)
            for dimension in (ALL, pair.dimension) if several else (pair.dimension,):
                rows[name].setdefault(dimension, []).append(row)
    return list(agreements(rows, samples=spec.evaluation.bootstrap_samples, seed=spec.seed))
