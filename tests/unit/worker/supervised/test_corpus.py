"""What is learned and what is held out, of several sources that share items."""

import json
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.held_out import prompt_key
from charter.inference.chat_template import ChatTokenizer
from charter.worker.errors import SpecError
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import EVALUATED, Item, read_conversations, read_texts
from charter.worker.supervised.texts import TextReader

from tests.support.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id


def text_of(item: Item) -> str:
    return str(TOKENIZER.decode(list(item.sequences[0].targets), skip_special_tokens=True))


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_one_source_holds_out_no_other_teaches(tmp_path: Path) -> None:
    """The same questions with other answers, and with white space that nobody sees."""
    one = write(tmp_path / "one.jsonl", [{"prompt": f"ask {n}", "completion": f"yes {n}"} for n in range(20)])
    two = write(tmp_path / "two.jsonl", [{"prompt": f"ask  {n} ", "completion": f"no {n}"} for n in range(5, 40)])
    found = read_conversations({"1": one, "2": two}, ConversationReader(ChatTokenizer(TOKENIZER), 300), 0.2)
    held, learned = (
        {text_of(item).split()[1] for source in found.values() for item in getattr(source, part)}
        for part in ("held_out", "train")
    )
    assert held
    assert not held & learned
    assert held | learned == {str(number) for number in range(40)}


def test_a_prompt_of_the_evaluation_is_learned_in_no_guise(tmp_path: Path) -> None:
    ask, other = {"role": "user", "content": "ask"}, {"role": "user", "content": "else"}
    answer = {"role": "assistant", "content": "yes"}
    system = {"role": "system", "content": "Be nice."}
    talks = [[ask, answer], [system, ask, answer], [other, answer, ask, answer], [other, answer]]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    evaluated = {prompt_key([ChatMessage("user", " ask ")])}
    reader = ConversationReader(ChatTokenizer(TOKENIZER), 300)
    found = read_conversations({"talks": str(file)}, reader, 0.0, evaluated)["talks"]
    assert (len(found.train), found.left_out.kinds) == (1, {EVALUATED: 3})


def test_rows_that_are_skipped_are_left_out_of_their_source_by_reason(tmp_path: Path) -> None:
    good, bad = {"prompt": "ask", "completion": "yes"}, {"prompt": "ask", "completion": " "}
    sources = {
        "some": write(tmp_path / "some.jsonl", [good, bad, {"prompt": "no answer"}, bad]),
        "none": write(tmp_path / "none.jsonl", [good]),
    }
    reader = ConversationReader(ChatTokenizer(TOKENIZER), 300)
    found = read_conversations(sources, reader, 0.0, bad=BadRows("skip"))
    kinds = {"with an empty turn": 2, "of no known layout": 1}
    assert (found["some"].left_out.items, found["some"].left_out.kinds) == (4, kinds)
    assert (found["none"].left_out.items, found["none"].left_out.kinds) == (1, {})
    empty = write(tmp_path / "empty.jsonl", [{"text": " "}])
    with pytest.raises(SpecError, match="1 of 1 left out: 1 without a word"):
        read_texts({"empty": empty}, TextReader(TOKENIZER, 4), 0.0, BadRows("skip"))


def test_every_token_of_a_text_is_learned_once_in_pieces_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "texts.jsonl", [{"text": "abcdefghij"}, {"text": "klm"}, {"text": "nopq"}])
    found = read_texts({"texts": source}, TextReader(TOKENIZER, 4), 0.0)["texts"]
    assert [text_of(item) for item in found.train] == ["abcd", "efgh", "ij", "klm", "nopq", ""]
    sequences = [item.sequences[0] for item in found.train]
    # Each begins with what the piece before predicted last, or with EOS, and nothing reads over the end of a text.
    assert [sequence.ids[0] == EOS for sequence in sequences] == [True, False, False, True, True, False]
    assert [sequence.targets[-1] == EOS for sequence in sequences] == [False, False, True, True, False, True]
    assert sum(item.bytes for item in found.train) == 17


def test_of_a_source_that_is_one_text_pieces_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("".join(chr(97 + number % 26) for number in range(400)))
    found = read_texts({"book": str(file)}, TextReader(TOKENIZER, 10), 0.25)["book"]
    assert (len(found.train), len(found.held_out)) == (30, 11)
    assert sum(item.bytes for item in (*found.train, *found.held_out)) == 400


def test_a_source_without_anything_to_learn_is_said_so(tmp_path: Path) -> None:
    source = write(tmp_path / "long.jsonl", [{"prompt": "ask", "completion": "x" * 99}])
    with pytest.raises(SpecError, match=r"nothing can be learned from .*long\.jsonl: 1 of 1 left out: 1 too long"):
        read_conversations({"long": source}, ConversationReader(ChatTokenizer(TOKENIZER), 50), 0.1)
