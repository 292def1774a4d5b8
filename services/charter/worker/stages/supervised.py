"""Fine-tunes the policy on conversations (``supervised/``, ``supervised.json``)."""

from collections.abc import Callable, Mapping
from typing import Final

from charter.inference.chat_template import ChatTokenizer
from charter.spec.bad_rows import bad_rows_of
from charter.spec.facts import longest_conversation
from charter.spec.models import context_tokens
from charter.v1 import run_pb2
from charter.worker.context import Run
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import names_of, read_conversations, weights_of
from charter.worker.supervised.learner import TokenLearner
from charter.worker.supervised.loop import Plan, Sample, learn
from charter.worker.supervised.mixture import Batching, Mixture
from charter.worker.supervised.reading import note_sources

NAME: Final = "supervised"


class SupervisedFineTuning:
    """Learns the assistant's turns of conversations."""

    phase = run_pb2.PHASE_SUPERVISED

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether there is something to learn from."""
        return spec.HasField(NAME)

    def done(self, run: Run) -> bool:
        """Whether what comes next starts from what was learned here."""
        return NAME in run.artifacts.learned

    def work(self, run: Run) -> None:
        """Raises ``SpecError`` for data that cannot be used."""
        data = run.spec.supervised.data
        names = names_of(data)
        weights = weights_of(data, names)
        plan = plan_of(run, NAME, NAME, run.spec.supervised, names, lambda tokens: Mixture.weighted(tokens, weights))
        learn(run, plan)


def plan_of(
    run: Run,
    name: str,
    section: str,
    spec: run_pb2.SupervisedSpec,
    sources: Mapping[str, str],
    mix: Callable[[Mapping[str, list[int]]], Mixture],
    *,
    last_only: bool = False,
) -> Plan:
    """Read conversations of sources, by name, and plan to learn from them.

    ``mix`` is given the learned tokens of each source's items, ``last_only`` is that of ``ConversationReader``. Raises
    as ``read_conversations``.
    """
    model = run.start.model
    tokenizer = ChatTokenizer.load(model)
    most = longest_conversation(spec, context_tokens(model))
    evaluated = {prompt.key for prompt in run.prompts.held_out}
    run.reporter.report(0, 0, text="reading the conversations")
    reader = ConversationReader(tokenizer, most, last_only=last_only)
    bad = bad_rows_of(run.spec, run.artifacts.left_out(name))
    corpus = read_conversations(sources, reader, spec.held_out_fraction, evaluated, bad)
    mixture = mix({name: [item.targets for item in one.train] for name, one in corpus.items()})
    sizes = {name: [1] * len(one.train) for name, one in corpus.items()}
    note_sources(run, name, corpus, bad, items="conversations", counted=f"{name}_rows_left_out")
    batching = Batching(mixture, sizes, spec.batch_size, spec.epochs, run.spec.seed)
    sample = Sample.of(
        corpus, most, run.spec.sampling.max_new_tokens, tokenizer.stop_ids, tokenizer.decode, reader.shown
    )
    return Plan(name, section, spec, corpus, batching, sample, TokenLearner)
