"""Has the policy learn from plain text (``pretraining/``, ``pretraining.json``)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from charter.spec.bad_rows import bad_rows_of
from charter.spec.facts import longest_text
from charter.spec.models import context_tokens
from charter.v1 import run_pb2
from charter.worker.context import Run
from charter.worker.supervised.corpus import names_of, read_texts, weights_of
from charter.worker.supervised.learner import TokenLearner
from charter.worker.supervised.loop import Plan, Sample, learn
from charter.worker.supervised.mixture import Batching, Mixture
from charter.worker.supervised.reading import note_sources
from charter.worker.supervised.texts import TextReader

NAME: Final = "pretraining"


class Pretraining:
    """Learns every token of texts."""

    phase = run_pb2.PHASE_PRETRAINING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether there is something to learn from."""
        return spec.HasField(NAME)

    def done(self, run: Run) -> bool:
        """Whether what comes next starts from what was learned here."""
        return NAME in run.artifacts.learned

    def work(self, run: Run) -> None:
        """Raises ``SpecError`` for data that cannot be used."""
        learn(run, self._plan(run))

    def _plan(self, run: Run) -> Plan:
        spec, model = run.spec.pretraining, run.start.model
        context = longest_text(spec, context_tokens(model))
        run.reporter.report(0, 0, text="reading the texts")
        reader = TextReader.load(model, context)
        replay = spec.replay if spec.replay_share else []
        sources = names_of([*spec.data, *replay])
        bad = bad_rows_of(run.spec, run.artifacts.left_out(NAME))
        corpus = read_texts(sources, reader, spec.held_out_fraction, bad)
        note_sources(run, NAME, corpus, bad, items="pieces", counted="text_rows_left_out")
        sizes = {name: [item.targets for item in one.train] for name, one in corpus.items()}
        mixture = _mixture(spec.data, sources, sizes)
        if replay:
            mixture = mixture.beside(_mixture(replay, sources, sizes), spec.replay_share)
        batching = Batching(mixture, sizes, spec.batch_tokens, spec.epochs, run.spec.seed)
        sample = Sample.of(corpus, context, run.spec.sampling.max_new_tokens, reader.stops, reader.decode)
        return Plan(NAME, NAME, spec, corpus, batching, sample, TokenLearner)


def _mixture(
    chosen: Iterable[run_pb2.DataSource], sources: Mapping[str, str], sizes: Mapping[str, Sequence[int]]
) -> Mixture:
    places = {one.source for one in chosen}
    tokens = {name: sizes[name] for name, source in sources.items() if source in places}
    return Mixture.weighted(tokens, weights_of(chosen, sources))
