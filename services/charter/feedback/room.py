"""What the page does for a signed-in labeller, without HTTP."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from charter.data.bad_rows import BadRows
from charter.evaluation.compare.asked import AskedFolder
from charter.evaluation.compare.folder import EvaluationFolder
from charter.feedback.chats import Chats
from charter.feedback.clients import Services
from charter.feedback.evaluation import evaluated_pairs
from charter.feedback.labellers import Labellers
from charter.feedback.labels import Label, LabelError, comparison_of
from charter.feedback.pairs import LEFT, RIGHT, Pair, pair_of, read_pairs, unique
from charter.feedback.queue import Queue
from charter.feedback.study import studied_pairs
from charter.feedback.votes import VoteFile
from charter.hashing import stable_fraction
from charter.rpc.messages import chat_messages
from charter.study.folder import StudyFolder
from charter.v1 import judge_pb2, policy_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """What is labelled, by whom, and where the services are."""

    policy: str
    preference: str
    labellers: Labellers
    # Keeps the chat pairs.
    chats: Path
    # The queue: pairs of sources, with what is done with the bad rows of each, and the pairs of a run. Neither: only
    # chats are labelled.
    files: Mapping[str, BadRows] = field(default_factory=dict)
    run: str = ""
    # In their place pairs of the answers of this evaluation, or the first ``most`` of them, or the pairs of this study;
    # votes are stored there.
    evaluation: EvaluationFolder | None = None
    most: int | None = None
    study: StudyFolder | None = None
    # Share of the queue that a second person labels.
    second_share: float = 0.2
    constitution: judge_pb2.Constitution | None = None
    # Show a principle to judge each pair by.
    guided: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 256

    @property
    def votes(self) -> AskedFolder | None:
        """The folder that keeps votes; None where labels go to the preference service."""
        return self.evaluation or self.study


class LabelStore(Protocol):
    """Where labels are kept."""

    def labels(self) -> AsyncIterator[types_pb2.Comparison]:
        """People's labels that this has not given before."""

    async def add(self, request_id: str, comparison: types_pb2.Comparison) -> str:
        """Store a label; its id. Repeating a request id stores nothing."""

    async def remove(self, comparison_id: str, labeller: str) -> None:
        """Take a person's own label out again."""


class Room:
    """The queue, the chats and the labels of one page. One process serves a page; all methods run on its event loop."""

    def __init__(self, config: FeedbackConfig) -> None:
        self.config = config
        self.labellers = config.labellers
        self._services = Services(config.policy, config.preference)
        self._store: LabelStore = self._services
        self._held = ExitStack()
        self._chats = Chats(config.chats)
        self._queue = Queue((), 0.0)
        # One change of the queue at a time: a label that is being read must not come back after its undo.
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Read the queue. Raises ``DataError``, ``OSError``, ``ServiceError``, or ``ValueError`` for an empty queue.

        Of an evaluation as ``evaluated_pairs``, of a study as ``studied_pairs``, and of both as ``VoteFile``.
        """
        if self.config.evaluation is not None:
            queued = evaluated_pairs(self.config.evaluation)[: self.config.most]
        elif self.config.study is not None:
            queued = studied_pairs(self.config.study)
        else:
            pairs = [pair for source, bad in self.config.files.items() for pair in read_pairs(source, bad)]
            if self.config.run:
                pairs += [pair_of(one) async for one in self._services.judged(self.config.run)]
            queued = unique(pairs)
            if (self.config.files or self.config.run) and not queued:
                raise ValueError(_no_pairs(self.config))
        votes = self.config.votes
        if votes is not None:
            self._store = self._held.enter_context(closing(VoteFile(votes, queued)))
        self._queue = Queue(queued, self.config.second_share, unlabelled_first=votes is not None)
        await self._read_labels()

    async def stop(self) -> None:
        """Close the connections, and let another page add votes."""
        self._held.close()
        await self._services.close()

    def session(self, labeller: str) -> dict[str, Any]:
        """What the page needs to know to begin."""
        constitution = self.config.constitution
        return {
            "labeller": labeller,
            "queue": len(self._queue) > 0,
            # Answers of an evaluation or a study are there already.
            "chat": self.config.votes is None,
            "guided": self.config.guided,
            "principles": [
                {"id": one.id, "dimension": one.dimension, "text": one.compare}
                for one in (constitution.principles if constitution else ())
            ],
        }

    async def next(self, labeller: str, skip: str = "") -> dict[str, Any]:
        """The next pair as the page shows it (None when there is none), and the progress."""
        async with self._changing:
            await self._read_labels()
            if skip:
                self._queue.skip(skip, labeller)
            pair = self._queue.next(labeller)
            return {
                "pair": None if pair is None else self._shown(pair, labeller),
                "progress": self._queue.progress(labeller),
            }

    async def label(self, label: Label, labeller: str) -> dict[str, Any]:
        """Store a label. Raises ``LabelError`` for an unknown pair and for a label that makes no sense."""
        pair = self._queue.get(label.pair) or self._chats.get(label.pair)
        if pair is None:
            raise LabelError("this page does not know the pair: it was started with other pairs than you labelled")
        comparison = comparison_of(label, pair, labeller, self.config.constitution)
        async with self._changing:
            comparison.id = await self._store.add(f"feedback-{labeller}-{label.id}", comparison)
            self._queue.add(comparison)
            return {"comparison": comparison.id, "progress": self._queue.progress(labeller)}

    async def undo(self, comparison: str, labeller: str) -> dict[str, Any]:
        """Take back a label of this labeller; others' are left alone."""
        async with self._changing:
            await self._store.remove(comparison, labeller)
            self._queue.undo(comparison, labeller)
            return {"progress": self._queue.progress(labeller)}

    async def statistics(self, labeller: str) -> dict[str, Any]:
        """Numbers of all labels that were given on a page like this."""
        async with self._changing:
            await self._read_labels()
            return {**self._queue.statistics(), "progress": self._queue.progress(labeller)}

    async def chat(self, messages: list[types_pb2.Message], labeller: str) -> AsyncIterator[dict[str, Any]]:
        """Two answers to a conversation: ``{"side", "text"}`` as they grow, at the end ``{"pair"}``.

        Raises ``LabelError`` on the page of an evaluation or a study.
        """
        if self.config.votes is not None:
            raise LabelError("this page compares answers that are there: nobody writes new ones")
        pair_id = self._chats.new_id()
        # Which sample is A says nothing; which is shown left, the pair's id draws.
        first_is_right = Pair(pair_id, types_pb2.Comparison()).swapped(labeller)
        sides = (RIGHT, LEFT) if first_is_right else (LEFT, RIGHT)
        sampling = policy_pb2.SamplingParameters(
            temperature=self.config.temperature,
            max_new_tokens=self.config.max_new_tokens,
            seed=random.SystemRandom().getrandbits(63),
        )
        model = await self._services.policy_model()
        answers: dict[int, types_pb2.Answer] = {}
        async for response in self._services.write(messages, sampling, 2):
            text = response.text_so_far
            if response.HasField("sample"):
                text = response.sample.text
                versions = [span.weight_version for span in response.sample.version_spans]
                answers[response.sample_index] = types_pb2.Answer(
                    text=text,
                    model=model,
                    weight_version=versions[-1] if versions else None,
                    cut_off=response.sample.finish_reason == policy_pb2.FINISH_REASON_LENGTH,
                )
            yield {"side": sides[response.sample_index], "text": text}
        if set(answers) != {0, 1}:
            raise ValueError(f"the policy wrote {len(answers)} of 2 answers; its log says why")
        pair = self._chats.add(pair_id, messages, (answers[0], answers[1]))
        yield {"pair": self._shown(pair, labeller)}

    async def _read_labels(self) -> None:
        """Take note of the labels that were stored since this was last called."""
        async for comparison in self._store.labels():
            self._queue.add(comparison)

    def _shown(self, pair: Pair, labeller: str) -> dict[str, Any]:
        """A pair without what wrote it."""
        left, right = pair.shown(labeller)
        return {
            "id": pair.id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in chat_messages(pair.comparison.prompt)],
            "left": left.text,
            "right": right.text,
            # Only where it is known to be so.
            "left_cut_off": left.cut_off,
            "right_cut_off": right.cut_off,
            "principle": self._principle(pair),
        }

    def _principle(self, pair: Pair) -> dict[str, str] | None:
        """The principle to judge this pair by: drawn by the pair, so that two labellers see the same one."""
        if self.config.constitution is None or not self.config.guided:
            return None
        every = list(self.config.constitution.principles)
        fitting = [one for one in every if one.dimension == pair.comparison.dimension] or every
        drawn = fitting[int(stable_fraction("principle", pair.id) * len(fitting))]
        return {"id": drawn.id, "text": drawn.compare}


def _no_pairs(config: FeedbackConfig) -> str:
    if config.files:
        return "there are no pairs to compare: the files hold none whose answers differ"
    return f"run {config.run} has no pairs to compare yet: they are stored when its judge labels them"
