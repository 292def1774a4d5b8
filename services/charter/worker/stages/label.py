"""Lets the judge label the sampled pairs and stores every label, failed ones too."""

import json
from collections import Counter
from collections.abc import Sequence

from charter.hashing import stable_number
from charter.held_out import held_out_of, prompt_key
from charter.jsonl import append_line
from charter.rpc.messages import chat_messages
from charter.rpc.validation import violations
from charter.runs.results import LeftOut
from charter.spec.facts import samples_pairs
from charter.storage.comparisons import LABELLED, REVISION_METHOD, enum_name
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker import metrics
from charter.worker.answer_log import Written
from charter.worker.clients.failed import failure_of, stored_failure
from charter.worker.context import Run
from charter.worker.failures import Failures, draws
from charter.worker.labels import label_of
from charter.worker.seeds import derive_seed
from charter.worker.stages.sample_pairs import Pair, judged_prompts, sampled_pairs

# Stages of ``Failures``.
LABELLING, REFRESHING = "labelling", "refreshing"

# Of a pair: its prompt's key and its answers.
_Key = tuple[str, str, str]


class PairLabelling:
    """Has each sampled pair judged and stored that the store holds no label of."""

    phase = run_pb2.PHASE_JUDGING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether a preference model is fitted to the labels."""
        return samples_pairs(spec)

    def done(self, run: Run) -> bool:
        """Whether it is fitted."""
        return run.artifacts.preference_fit().exists()

    def work(self, run: Run) -> None:
        """Raises as ``Labelling.label``."""
        batches = sampled_pairs(run)
        labelling = Labelling(run, LABELLING, sum(len(batch) for batch in batches), run.start.version)
        for index, batch in enumerate(batches):
            labelling.label(str(index), batch)
        run.artifacts.count(**{f"labels_{name.lower()}": count for name, count in labelling.outcomes.items()})


def held_out_keys(run: Run) -> set[str]:
    """Keys of the prompts whose comparisons, of the first pairs and of every refresh, are held out from all fits.

    A share of the prompts of the first pairs, then of those that each refresh adds, by ``held_out_of``: either part has
    some of each, and which they are depends on the spec and the prompts alone.
    """
    spec, judged = run.spec.comparisons, judged_prompts(run)
    refreshes = run.spec.ppo.steps // spec.refresh_every_steps if spec.HasField("refresh_every_steps") else 0
    held_out: set[str] = set()
    decided: set[str] = set()
    taken = 0
    for pairs in (spec.pairs, *[spec.refresh_pairs] * refreshes):
        if not judged or len(decided) == len(judged):
            break
        new = {prompt.key for prompt in run.prompts.take(judged, taken, pairs, run.spec.seed)} - decided
        held_out |= held_out_of(new, spec.held_out_fraction)
        decided |= new
        taken += pairs
    return held_out


class Labelling:
    """The labels of some pairs, each asked for until the store has it.

    A pair whose judge could not be reached is not stored, and asked about again by the next attempt. So are those that
    the judge could not judge, where they have stopped the run.

    Args:
        run: of the pairs.
        stage: of ``Failures``.
        pairs: how many there are.
        version: the policy's weights that wrote them.
    """

    def __init__(self, run: Run, stage: str, pairs: int, version: int) -> None:
        self._run, self._version, self._pairs = run, version, pairs
        self._again = draws(run, stage, 0)
        self._held_out = held_out_keys(run)
        # Of what the store holds, by name.
        self.outcomes: Counter[str] = Counter()
        self._stored: Counter[_Key] = Counter()
        kinds: list[str] = []
        for comparison in run.services.preference.comparisons(run.id, types_pb2.LABEL_SOURCE_AI):
            if comparison.method == REVISION_METHOD:
                continue
            answers = comparison.answer_a, comparison.answer_b
            if answers[0].weight_version == version and (not self._again or comparison.outcome in LABELLED):
                messages = chat_messages(comparison.prompt)
                self._stored[prompt_key(messages), answers[0].text, answers[1].text] += 1
                self.outcomes[enum_name("outcome", comparison.outcome)] += 1
                if (failure := stored_failure(comparison)) is not None:
                    kinds.append(failure.kind)
        self._failures = Failures(run, stage, pairs, LeftOut.of(self.outcomes.total(), kinds))

    def label(self, name: str, pairs: Sequence[Pair]) -> None:
        """Have those pairs judged and stored that are not, and report it; ``name`` is theirs in this run.

        Raises as ``Failures.add``, and ``Cancelled``.
        """
        run = self._run
        run.reporter.raise_if_stopped()
        waiting = {f"pair-{name}-{place}": pair for place, pair in enumerate(pairs) if not self._take(pair)}
        if not waiting:
            return
        items = [
            run.comparison_item(item, pair.prompt, pair.answer_a.text, pair.answer_b.text)
            for item, pair in waiting.items()
        ]
        seed = derive_seed(run.spec.seed, "labels", *([self._again] if self._again else []))
        judged = run.services.judge.compare(items, run.judging_options(seed))
        comparisons = [
            comparison
            for item, pair in waiting.items()
            if judged[item].outcome != types_pb2.OUTCOME_UNAVAILABLE
            and not violations(comparison := self._comparison(pair, judged[item]))
        ]
        if comparisons:
            # Another one where other pairs of the batch are stored.
            request = stable_number(str(self._again), *sorted(waiting))
            run.services.preference.add_comparisons(f"{run.id}-labels-{name}-{request:016x}", comparisons)
        stored = Counter(enum_name("outcome", comparison.outcome) for comparison in comparisons)
        append_line(run.artifacts.labels, json.dumps(stored))
        for outcome, count in stored.items():
            metrics.PAIRS.labels(run.id, outcome.lower()).inc(count)
        self.outcomes += stored
        try:
            self._failures.add([failure_of(judged[item]) for item in waiting])
        finally:
            self._report()

    def _report(self) -> None:
        so_far = self._failures.so_far
        numbers = {f"outcome_{outcome}": count for outcome, count in self.outcomes.items()}
        numbers |= {f"{metrics.BY_KIND}{kind}": count for kind, count in so_far.kinds.items()}
        self._run.reporter.report(so_far.items, self._pairs, numbers=numbers, text=so_far.in_words())

    def _take(self, pair: Pair) -> bool:
        """Whether the store holds this pair, once for each time that it is asked about."""
        key = prompt_key(pair.prompt.messages), pair.answer_a.text, pair.answer_b.text
        held = self._stored[key] > 0
        self._stored[key] -= held
        return held

    def _comparison(self, pair: Pair, judgement: judge_pb2.Judgement) -> types_pb2.Comparison:
        held_out = pair.prompt.key in self._held_out
        answers = self._written(pair.answer_a), self._written(pair.answer_b)
        return label_of(self._run, pair.prompt, *answers, judgement, held_out=held_out)

    def _written(self, answer: Written) -> types_pb2.Answer:
        return types_pb2.Answer(
            text=answer.text,
            model=self._run.spec.policy.model,
            weight_version=self._version,
            cut_off=answer.cut_off,
        )
