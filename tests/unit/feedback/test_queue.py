"""Which pair who gets, and what is counted of their labels."""

import json
from pathlib import Path

import pytest
from charter.data.errors import DataError
from charter.feedback.chats import Chats
from charter.feedback.labellers import LabellersError, add_labeller, load_labellers
from charter.feedback.labels import Label, LabelError, comparison_of
from charter.feedback.pairs import Pair, pair_of, prefers_first, read_pairs, unique
from charter.feedback.queue import LEASE_SECONDS, Queue
from charter.storage.comparison_files import write_comparisons
from charter.storage.comparisons import content_id
from charter.v1 import judge_pb2, types_pb2

from tests.support.comparisons import comparison


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_pairs(count: int) -> list[Pair]:
    return [
        pair_of(comparison(f"Yes {n}", None, outcome=types_pb2.OUTCOME_UNAVAILABLE, dimension="helpful"))
        for n in range(count)
    ]


def label(pair: Pair, choice: str = "left", **fields: str) -> Label:
    return Label.model_validate({"id": "label-1234", "pair": pair.id, "choice": choice, **fields})


def give(queue: Queue, pair: Pair, labeller: str, choice: str = "left") -> str:
    """Label as the room does; the stored id."""
    stored = comparison_of(label(pair, choice), pair, labeller, None)
    stored.id = f"{pair.id} {labeller} {choice}"
    queue.add(stored)
    return stored.id


def opened(queue: Queue, labeller: str) -> Pair:
    pair = queue.next(labeller)
    assert pair is not None
    return pair


def test_two_labellers_at_once_get_different_pairs_until_all_are_labelled() -> None:
    queue = Queue(make_pairs(4), second_share=0.0)
    seen: list[str] = []
    for labeller in ("ann", "ben") * 2:
        pair = opened(queue, labeller)
        seen.append(pair.id)
        give(queue, pair, labeller)
    assert len(set(seen)) == 4
    assert queue.next("ann") is None
    assert queue.progress("ann") == {"pairs": 4, "wanted": 4, "done": 4, "mine": 2}


def test_an_open_pair_is_offered_again_to_its_labeller_and_to_nobody_else() -> None:
    queue = Queue(make_pairs(2), second_share=0.0)
    mine = opened(queue, "ann")
    assert opened(queue, "ann").id == mine.id
    assert opened(queue, "ben").id != mine.id
    assert queue.next("cleo") is None


def test_a_pair_that_somebody_left_open_goes_to_others_after_a_while() -> None:
    clock = Clock()
    queue = Queue(make_pairs(1), second_share=0.0, clock=clock)
    opened(queue, "ann")
    assert queue.next("ben") is None
    clock.now = LEASE_SECONDS + 1
    assert queue.next("ben") is not None


def test_a_second_labeller_gets_the_share_and_never_the_first_again() -> None:
    pairs = make_pairs(400)
    queue = Queue(pairs, second_share=0.25)
    wanted = queue.progress("ann")["wanted"]
    assert 400 + 70 < wanted < 400 + 130
    for pair in pairs:
        give(queue, pair, "ann")
    assert queue.next("ann") is None
    second = 0
    while offered := queue.next("ben"):
        give(queue, offered, "ben", "right")
        second += 1
    assert second == wanted - 400
    assert queue.progress("ben")["done"] == wanted


def test_a_skipped_pair_goes_to_others() -> None:
    queue = Queue(make_pairs(1), second_share=0.0)
    pair = opened(queue, "ann")
    queue.skip(pair.id, "ann")
    assert queue.next("ann") is None
    assert opened(queue, "ben").id == pair.id


def test_undo_opens_the_pair_for_its_labeller() -> None:
    queue = Queue(make_pairs(2), second_share=0.0)
    pair = opened(queue, "ann")
    stored = give(queue, pair, "ann")
    queue.undo(stored, "ben")
    assert queue.progress("ann")["done"] == 1
    queue.undo(stored, "ann")
    queue.undo(stored, "ann")
    assert queue.progress("ann")["done"] == 0
    assert opened(queue, "ann").id == pair.id
    assert opened(queue, "ben").id != pair.id


def test_agreement_is_about_the_answers_and_not_about_their_places() -> None:
    """Ann and Ben prefer the same text of each pair, wherever it was shown; Cohen's kappa is 1."""
    pairs = make_pairs(30)
    queue = Queue(pairs, second_share=1.0)
    for number, pair in enumerate(pairs):
        wanted = pair.comparison.answer_a.text if number % 3 else pair.comparison.answer_b.text
        for labeller in ("ann", "ben"):
            left, _ = pair.shown(labeller)
            give(queue, pair, labeller, "left" if left.text == wanted else "right")
    numbers = queue.statistics()
    assert (numbers["labelled_twice"], numbers["agreement"], numbers["kappa"]) == (30, 1.0, 1.0)
    assert numbers["left"] + numbers["right"] == 60
    assert 10 < numbers["left"] < 50


def test_labels_are_compared_with_those_that_the_pairs_came_with() -> None:
    known = [pair_of(comparison(f"Yes {n}")) for n in range(4)]
    queue = Queue(known, second_share=0.0)
    for number, pair in enumerate(known):
        prefers_a = number < 3
        give(queue, pair, "ann", "left" if prefers_a != pair.swapped("ann") else "right")
    numbers = queue.statistics()
    assert (numbers["known_pairs"], numbers["known_agreement"]) == (4, 0.75)


def test_the_stored_comparison_says_what_was_shown_where() -> None:
    source = comparison("Yes", None, outcome=types_pb2.OUTCOME_UNAVAILABLE, dimension="harmless", run_id="run-1")
    source.answer_a.model, source.answer_b.model = "model-a", "model-b"
    source.split = types_pb2.SPLIT_HELD_OUT
    pair = pair_of(source)
    constitution = judge_pb2.Constitution(
        digest="d", principles=[judge_pb2.Principle(id="kind", dimension="helpful", compare="Which is kinder?")]
    )
    names = {pair.swapped(name): name for name in ("ann", "ben", "cleo", "dan", "eve", "fay")}
    assert set(names) == {True, False}
    for swapped, labeller in names.items():
        given = label(pair, "right", right_rating="up", left_rating="down", reason="Why not", principle="kind")
        stored = comparison_of(given, pair, labeller, constitution)
        assert stored.answer_a.model == ("model-b" if swapped else "model-a")
        assert (stored.outcome, stored.probability_a) == (types_pb2.OUTCOME_PREFERRED_B, 0.0)
        assert (stored.answer_a.rating, stored.answer_b.rating) == (types_pb2.RATING_DOWN, types_pb2.RATING_UP)
        assert (stored.source, stored.labeller, stored.method) == (types_pb2.LABEL_SOURCE_HUMAN, labeller, "feedback")
        assert (stored.run_id, stored.dimension, stored.split) == ("run-1", "harmless", types_pb2.SPLIT_HELD_OUT)
        assert (stored.rationale, stored.constitution_digest) == ("Why not", "d")
        (judgement,) = stored.judgements
        assert (judgement.principle_id, judgement.dimension, judgement.probability_a) == ("kind", "helpful", 0.0)
        assert judgement.probability_a_shown_first == 0.0
        assert not judgement.HasField("probability_a_shown_second")
        assert content_id(stored) == pair.id
        assert not source.answer_a.rating


def test_labels_that_make_no_sense_are_refused() -> None:
    (pair,) = make_pairs(1)
    with pytest.raises(LabelError, match="no principle 'kind'"):
        comparison_of(label(pair, principle="kind"), pair, "ann", None)
    same = pair_of(comparison("No", 0.5, outcome=types_pb2.OUTCOME_TIE))
    with pytest.raises(LabelError, match="only a tie"):
        comparison_of(label(same), same, "ann", None)
    assert comparison_of(label(same, "tie"), same, "ann", None).probability_a == 0.5


def test_what_is_preferred_does_not_depend_on_the_order() -> None:
    one = comparison("Yes")
    other = comparison("Yes", 0.2, outcome=types_pb2.OUTCOME_PREFERRED_B)
    other.answer_a.text, other.answer_b.text = "No", "Yes"
    assert prefers_first(one) == prefers_first(other) == "second"
    assert content_id(one) == content_id(other)
    assert prefers_first(comparison("Yes", None, outcome=types_pb2.OUTCOME_INVALID)) == ""


def test_pairs_are_read_from_every_layout(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "Hi?", "answer_a": "a", "answer_b": "b", "dimension": "helpful", "answer_a_model": "m"},
        {"prompt": [{"role": "user", "content": "Hi?"}], "answer_a": "b", "answer_b": "a"},
        {"prompt": "Hi?", "chosen": "c", "rejected": "d"},
        {"prompt": "Hi?", "answer_a": "same", "answer_b": "same"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, again, chosen, same = list(read_pairs(file))
    assert first.id == again.id
    assert first.comparison.split == again.comparison.split != types_pb2.SPLIT_UNSPECIFIED
    assert first.comparison.answer_a.model == "m"
    assert prefers_first(first.comparison) == ""
    assert prefers_first(chosen.comparison) == "first"
    assert [pair.id for pair in unique([first, again, chosen, same])] == [first.id, chosen.id]
    exported = tmp_path / "exported.parquet"
    write_comparisons(exported, [comparison("Yes")])
    assert [pair.id for pair in read_pairs(exported)] == [content_id(comparison("Yes"))]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi?", "answer_a": "a"}, "needs chosen and rejected, two answers"),
        ({"answer_a": "a", "answer_b": "b"}, "prompt needs at least 1 items"),
        ({"prompt": "Hi?", "answer_a": "a", "answer_b": "b", "answer_a_rating": "?"}, "rating must be one of"),
    ],
)
def test_a_malformed_pair_names_its_line(tmp_path: Path, row: dict[str, object], words: str) -> None:
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "Hi?", "answer_a": "a", "answer_b": "b"}
    file.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{words}"):
        list(read_pairs(file))


def test_chats_are_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "feedback" / "chats.jsonl"
    chats = Chats(file)
    prompt = [types_pb2.Message(role=types_pb2.ROLE_USER, content="line\u2028break")]
    pair_id = chats.new_id()
    answers = (types_pb2.Answer(text="a\u2028", model="m", weight_version=3), types_pb2.Answer(text="b", model="m"))
    added = chats.add(pair_id, prompt, answers)
    with file.open("a") as more:
        more.write('{"id": "chat-half')
    again = Chats(file).get(pair_id)
    assert again is not None
    assert again.comparison == added.comparison
    assert again.swapped("ann") == added.swapped("ann")


def test_tokens_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    file = tmp_path / "feedback" / "labellers.json"
    first = add_labeller(file, "ann").tokens["ann"]
    labellers = add_labeller(file, "ben")
    assert add_labeller(file, "ann").tokens["ann"] == first
    assert file.stat().st_mode & 0o077 == 0
    assert load_labellers(file) == labellers
    assert labellers.who(first) == "ann"
    assert labellers.who("") is None
    assert labellers.who(first + "x") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"ann": "short"}', "fewer than 16 characters"),
        ('{"": "0123456789abcdef"}', "is no name of a labeller"),
        ('{"a": "0123456789abcdef", "b": "0123456789abcdef"}', "the same token"),
    ],
)
def test_a_wrong_file_of_labellers_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "labellers.json"
    file.write_text(content)
    with pytest.raises(LabellersError, match=words):
        load_labellers(file)


def test_where_pairs_without_a_label_come_first_a_second_labeller_waits_for_them() -> None:
    pairs = make_pairs(3)
    queue = Queue(pairs, second_share=1.0, unlabelled_first=True)
    give(queue, pairs[0], "ann")
    given = []
    for _ in pairs:
        pair = opened(queue, "ben")
        given.append(pairs.index(pair))
        give(queue, pair, "ben")
    assert given == [1, 2, 0]
    # What somebody has open is as good as labelled.
    queue = Queue(pairs, second_share=1.0, unlabelled_first=True)
    assert [pairs.index(opened(queue, name)) for name in ("ann", "ben", "cleo", "dan")] == [0, 1, 2, 0]
