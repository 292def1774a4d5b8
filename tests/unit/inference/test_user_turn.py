"""Prompts that are no conversation to answer: turns as the user, in every chat template, and plain text."""

import pytest
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt, RefusedRequestError

from tests.support.chat_templates import ALL, LLAMA_2, sentencepiece_tokenizer
from tests.support.tiny import byte_tokenizer

CHATS = {name: ChatTokenizer(sentencepiece_tokenizer(template)) for name, template in ALL.items()}
TURNS = (ChatMessage("user", "Hi"), ChatMessage("assistant", "Yes"))


@pytest.mark.parametrize("messages", [(), TURNS], ids=["first", "later"])
@pytest.mark.parametrize("name", list(CHATS))
def test_the_template_is_rendered_up_to_where_the_user_speaks(name: str, messages: tuple[ChatMessage, ...]) -> None:
    chat = CHATS[name]
    ids = chat.prompt_ids(Prompt(messages, as_user=True))
    # What a user says, behind it, is read as the template reads it, whatever it is.
    for said in ("Why", "Qx"):
        whole = chat.render((*messages, ChatMessage("user", said)))
        before, _, after = whole.rpartition(said)
        assert ids == chat.encode(before)
        assert after.strip()


def test_the_system_turn_of_a_template_comes_before_it() -> None:
    chat = ChatTokenizer(byte_tokenizer())
    rendered = chat.tokenizer.decode(chat.prompt_ids(Prompt((ChatMessage("system", "Of tea."),), as_user=True)))
    assert rendered == "<|im_start|>system\nOf tea.<|im_end|>\n<|im_start|>user\n"


def test_a_turn_as_the_user_ends_where_the_template_ends_it_by_plain_text() -> None:
    chat = ChatTokenizer(sentencepiece_tokenizer(LLAMA_2))
    as_user, answer = Prompt((), as_user=True), Prompt(TURNS[:1])
    written = chat.encode("Why not [/INST] No [INST] A")
    assert chat.turn(as_user, written, ended=False)[0].strip() == "Why not"
    assert chat.turn(as_user, written, ended=False)[1]
    assert not chat.turn(as_user, chat.encode("Why not"), ended=False)[1]
    # An answer stays as it was written.
    assert "[/INST] No" in chat.turn(answer, written, ended=False)[0]


def test_the_end_token_of_a_turn_is_no_text() -> None:
    chat = ChatTokenizer(byte_tokenizer())
    assert chat.turn(Prompt((), as_user=True), [*chat.encode("Why"), chat.eos_id], ended=True) == ("Why", True)


def test_a_template_that_takes_no_user_next_is_refused() -> None:
    with pytest.raises(RefusedRequestError, match="refuses the conversation"):
        CHATS["gemma"].prompt_ids(Prompt(TURNS[:1], as_user=True))
