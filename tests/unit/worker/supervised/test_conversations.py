"""Which tokens of a conversation are learned: against what is written here by hand, for templates of many kinds."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.worker.clients.failed import Failed
from charter.worker.errors import RunError
from charter.worker.supervised.conversations import EMPTY, NO_ANSWER, REFUSED, TOO_LONG, ConversationReader
from charter.worker.training.batches import TrainingSequence
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support import chat_templates
from tests.support.chat_templates import sentencepiece_tokenizer
from tests.support.tiny import CHAT_TEMPLATE, byte_tokenizer

SYSTEM = ChatMessage("system", "Be good.")
TALK = (
    ChatMessage("user", "Hi A"),
    ChatMessage("assistant", "Yes B"),
    ChatMessage("user", "No"),
    ChatMessage("assistant", "Bye 1"),
)
LLAMA_3 = (
    "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)


def byte_level(template: str, end_of_turn: str, *others: str) -> PreTrainedTokenizerFast:
    """A tokenizer as GPT-2's and Llama 3's, whose EOS is the template's end of turn."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in (end_of_turn, *others)])
    tokenizer.eos_token, tokenizer.chat_template = end_of_turn, template
    return tokenizer


# Of each template: its tokenizer, the conversation, and by hand the text before each answer and what is learned of it.
# The end of a turn is what the template writes; <END> is the EOS that generation stops at where that is another.
CASES: dict[str, tuple[PreTrainedTokenizerFast, Sequence[ChatMessage], list[tuple[str, str]]]] = {
    "chatml": (
        byte_tokenizer(),
        (SYSTEM, *TALK),
        [
            (
                "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHi A<|im_end|>\n<|im_start|>assistant\n",
                "Yes B",
            ),
            ("<|im_end|>\n<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n", "Bye 1"),
        ],
    ),
    "chatml in a model whose eos is another token": (
        byte_level(CHAT_TEMPLATE, "<|end|>"),
        TALK,
        [
            ("<|im_start|>user\nHi A<|im_end|>\n<|im_start|>assistant\n", "Yes B<|im_end|>"),
            ("\n<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n", "Bye 1<|im_end|>"),
        ],
    ),
    "llama 3": (
        byte_level(LLAMA_3, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        (SYSTEM, *TALK),
        [
            (
                "<|im_start|><|start_header_id|>system<|end_header_id|>\n\nBe good.<|eot_id|><|start_header_id|>user"
                "<|end_header_id|>\n\nHi A<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                "Yes B",
            ),
            (
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nNo<|eot_id|><|start_header_id|>assistant"
                "<|end_header_id|>\n\n",
                "Bye 1",
            ),
        ],
    ),
    "gemma, without a system turn": (
        sentencepiece_tokenizer(chat_templates.GEMMA),
        (SYSTEM, *TALK),
        [
            (
                "<s><start_of_turn>user\nBe good.\n\nHi A<end_of_turn>\n<start_of_turn>model\n",
                "Yes B<end_of_turn>",
            ),
            ("\n<start_of_turn>user\nNo<end_of_turn>\n<start_of_turn>model\n", "Bye 1<end_of_turn>"),
        ],
    ),
    "mistral": (
        sentencepiece_tokenizer(MISTRAL),
        TALK,
        [("<s>[INST] Hi A[/INST]", " Yes B"), ("</s>[INST] No[/INST]", " Bye 1")],
    ),
    "llama 2": (
        sentencepiece_tokenizer(chat_templates.LLAMA_2),
        (SYSTEM, *TALK),
        [
            ("<s>[INST] <<SYS>>\nBe good.\n<</SYS>>\n\nHi A [/INST]", " Yes B "),
            ("</s><s>[INST] No [/INST]", " Bye 1 "),
        ],
    ),
    "alpaca, whose turns end with nothing but lines": (
        sentencepiece_tokenizer(chat_templates.ALPACA),
        TALK,
        [
            ("### Instruction:\nHi A\n\n### Response:\n", "Yes B"),
            ("\n\n### Instruction:\nNo\n\n### Response:\n", "Bye 1"),
        ],
    ),
}


def reader(tokenizer: PreTrainedTokenizerFast, max_tokens: int = 512) -> ConversationReader:
    return ConversationReader(ChatTokenizer(tokenizer), max_tokens)


def read(tokenizer: PreTrainedTokenizerFast, messages: Sequence[ChatMessage]) -> tuple[TrainingSequence, ...]:
    found = reader(tokenizer).read(messages)
    assert not isinstance(found, Failed), found
    return found


def test_of_a_revision_only_the_last_answer_is_learned(tiny_model: Path) -> None:
    """What a prompt quotes of the assistant may be what the revision puts right."""
    tokenizer = ChatTokenizer.load(str(tiny_model))
    every, last = (ConversationReader(tokenizer, 200, last_only=only).read(TALK) for only in (False, True))
    assert not isinstance(every, Failed)
    assert not isinstance(last, Failed)
    assert [tokenizer.decode(list(one.targets)) for one in last] == ["Bye 1"]
    assert sum(len(one.targets) for one in every) > len(last[0].targets)


@pytest.mark.parametrize("case", CASES)
def test_what_is_learned_is_what_the_assistant_writes(case: str) -> None:
    tokenizer, messages, expected = CASES[case]
    (sequence,) = read(tokenizer, messages)
    ids: list[int] = []
    counted: list[tuple[int, int]] = []
    for before, answer in expected:
        # Only the first text of all gets what the tokenizer puts before a text.
        ids += tokenizer.encode(before, add_special_tokens=False)[0 if not ids else shift(tokenizer, before) :]
        written = tokenizer.encode("0" + answer, add_special_tokens=False)[start(tokenizer) :]
        counted += [(len(ids) - 1 + place, token) for place, token in enumerate([*written, tokenizer.eos_token_id])]
        ids += written
    assert list(sequence.ids) == ids
    assert list(zip(sequence.states, sequence.targets, strict=True)) == counted


def start(tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the "0" that keeps an answer from being the beginning of a text."""
    return len(tokenizer.encode("0", add_special_tokens=False))


def shift(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """Tokens that the tokenizer puts before a text that begins it."""
    return int(tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False)[0]) == "▁")


def test_the_prompt_is_read_as_the_policy_service_reads_it() -> None:
    """For every kind of template: before each answer the model has read the ids that a prompt of it has."""
    for template in chat_templates.ALL.values():
        tokenizer = sentencepiece_tokenizer(template)
        chat = ChatTokenizer(tokenizer)
        sequences = read(tokenizer, TALK)
        states = [
            place
            for one in sequences
            for place in one.states
            if list(one.ids[: place + 1]) in [chat.encode(chat.render(TALK[:1])), chat.encode(chat.render(TALK[:3]))]
        ]
        assert len(states) == 2


def test_an_end_of_a_prompt_that_joins_the_answer_begins_a_new_sequence() -> None:
    """Where two line ends are one token, the prompt's ids are not those of the conversation that goes on."""
    tokenizer = byte_level(CHAT_TEMPLATE, "<|im_end|>")
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    # Chunks of a tokenizer that joins line ends; Charter would break up a token that the template writes.
    first, second = read(tokenizer, (TALK[0], ChatMessage("assistant", "\nYes"), *TALK[2:]))
    assert tokenizer.decode(first.ids).endswith("assistant\n\nYes")
    assert tokenizer.decode(first.targets) == "\nYes<|im_end|>"
    assert tokenizer.decode(second.targets) == "Bye 1<|im_end|>"


@pytest.mark.parametrize(
    ("template", "talk", "why"),
    [
        # Qwen3: an empty thought before the last answer, and none before the others.
        (
            CHAT_TEMPLATE.replace(
                "message['content']",
                "('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']",
            ),
            TALK,
            "shows earlier answers otherwise",
        ),
        # DeepSeek R1: thoughts are not shown.
        (chat_templates.DEEPSEEK, (TALK[0], ChatMessage("assistant", "A</think>Yes")), "leaves out some"),
        # QwQ: an answer begins with a thought, unless it is given.
        (CHAT_TEMPLATE.replace("assistant\n'", "assistant\n<think>'"), TALK, "does not begin an answer"),
    ],
)
def test_a_template_that_rewrites_answers_is_refused_by_name(
    template: str, talk: Sequence[ChatMessage], why: str
) -> None:
    tokenizer = (
        sentencepiece_tokenizer(template) if template is chat_templates.DEEPSEEK else byte_level(template, "<|im_end|>")
    )
    tokenizer.name_or_path = "some/model"
    with pytest.raises(RunError, match=rf"template of some/model {why}"):
        reader(tokenizer).read(talk)


@pytest.mark.parametrize(
    ("talk", "kind"),
    [
        ((TALK[0],), NO_ANSWER),
        ((TALK[0], ChatMessage("assistant", " \n")), EMPTY),
        ((TALK[0], ChatMessage("assistant", "Yes! " * 300)), TOO_LONG),
        ((TALK[1],), REFUSED),
    ],
)
def test_what_cannot_be_learned_says_why(talk: Sequence[ChatMessage], kind: str) -> None:
    """A whole conversation is left out: an answer that was cut would teach to stop in the middle."""
    tokenizer = sentencepiece_tokenizer(chat_templates.GEMMA)
    found = reader(tokenizer).read(talk)
    assert isinstance(found, Failed)
    assert found.kind == kind


def test_a_message_cannot_end_its_turn() -> None:
    """Whoever wrote the data: the text of a turn is not read as the template's tokens."""
    (sequence,) = read(byte_tokenizer(), (TALK[0], ChatMessage("assistant", "a<|im_end|>b")))
    assert list(sequence.targets).count(byte_tokenizer().eos_token_id) == 1


@pytest.mark.parametrize("case", CASES)
def test_a_report_has_no_prompt_in_full(case: str) -> None:
    tokenizer = CASES[case][0]
    chat = ChatTokenizer(tokenizer)
    for before in ((), (SYSTEM,)):
        for question in ("Why?", "How is a pie made with apples?", "Please tell me all that you know of bees. " * 9):
            prompt = chat.render((*before, ChatMessage("user", question)))
            shown = reader(tokenizer).shown(chat.decode(chat.encode(prompt)))
            assert question.strip() not in shown
            assert len(shown) < len(prompt)


def test_of_a_prompt_a_report_has_the_beginning() -> None:
    prompt = "<|im_start|>user\nHow is a pie made with apples?<|im_end|>\n<|im_start|>assistant\n"
    assert reader(byte_tokenizer()).shown(prompt) == prompt.replace("de with apples?", "…")


def test_the_longest_that_fits_is_kept() -> None:
    tokenizer = byte_tokenizer()
    (sequence,) = read(tokenizer, TALK)
    assert not isinstance(reader(tokenizer, len(sequence.ids)).read(TALK), Failed)
    assert isinstance(reader(tokenizer, len(sequence.ids) - 1).read(TALK), Failed)
