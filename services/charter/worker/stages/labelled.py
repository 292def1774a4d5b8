"""What the stages share that learn from labels: where these are, and the plan to learn from them."""

from collections.abc import Callable, Mapping
from functools import partial

from charter.data.bad_rows import BadRows
from charter.inference.chat_template import ChatTokenizer
from charter.spec.bad_rows import bad_rows_of
from charter.spec.facts import longest_conversation
from charter.spec.models import context_tokens
from charter.v1 import run_pb2, types_pb2
from charter.worker.context import Run
from charter.worker.offline.reference import with_reference
from charter.worker.offline.stored import taken_from_store
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import SourceItems, names_of, weights_of
from charter.worker.supervised.loop import MakeLearner, Plan, Sample
from charter.worker.supervised.mixture import Batching, Mixture
from charter.worker.supervised.reading import note_sources
from charter.worker.training import checkpoint

STORED = "stored comparisons"

# Reads sources by name with a tokenizer's reader: the share held out, keys of evaluated prompts, and bad rows follow.
Read = Callable[[Mapping[str, str], ConversationReader, float, set[str], BadRows], dict[str, SourceItems]]


def plan_of(
    run: Run,
    name: str,
    spec: run_pb2.DpoSpec | run_pb2.KtoSpec,
    learner: MakeLearner,
    read: Read,
    wanted: Callable[[types_pb2.Comparison], bool],
    *,
    prepare: Callable[[dict[str, SourceItems], int], dict[str, SourceItems]] = lambda corpus, _: corpus,
) -> Plan:
    """Read the labels that the spec's section ``name`` names, and plan to learn from them.

    ``wanted`` are those of the store that say something; ``prepare`` is given what was read, and the most tokens of an
    item. Raises as ``read``.
    """
    model = run.start.model
    tokenizer = ChatTokenizer.load(model)
    most = longest_conversation(spec, context_tokens(model))
    run.reporter.report(0, 0, text="reading the labels")
    names = names_of(spec.data)
    sources, weights = dict(names), weights_of(spec.data, names)
    if spec.HasField("stored"):
        file = run.artifacts.stored(name)
        # An attempt that goes on from a checkpoint learns from what the earlier ones have found.
        if not (file.is_file() and checkpoint.complete(run.artifacts.checkpoints / name)):
            taken_from_store(run, {f"{name}.stored": spec.stored}, file, wanted)
        sources[STORED] = str(file)
        weights |= {STORED: spec.stored.weight} if spec.stored.HasField("weight") else {}
    bad = bad_rows_of(run.spec, run.artifacts.left_out(name))
    evaluated = {prompt.key for prompt in run.prompts.held_out}
    reader = ConversationReader(tokenizer, most, last_only=True)
    corpus = prepare(read(sources, reader, spec.held_out_fraction, evaluated, bad), most)
    note_sources(run, name, corpus, bad, items="", counted=f"{name}_rows_left_out")
    units = {source: [1] * len(one.train) for source, one in corpus.items()}
    batching = Batching(Mixture.weighted(units, weights), units, spec.batch_size, spec.epochs, run.spec.seed)
    sample = Sample.of(
        corpus, most, run.spec.sampling.max_new_tokens, tokenizer.stop_ids, tokenizer.decode, reader.shown
    )
    return Plan(name, name, spec, corpus, batching, sample, partial(learner, beta=spec.beta), with_reference)
