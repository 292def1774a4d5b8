"""Chat templates: from a conversation to the token ids that a model reads, and back to text."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import jinja2
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from charter.chat import ChatMessage
from charter.inference.engine import Prompt, RefusedRequestError, TokenLogprob, TokenPlace
from charter.inference.system_text import moved_to_user
from charter.inference.template_form import breaker, has_symbol, read_form, with_space

# Tokens that exist for padding or can be borrowed for it, tried before any other special token.
_USUAL_PADDING = ("<|endoftext|>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")

# Stands for what the user says next; no template says it.
_MARK = "Qz0zQ"

# In how many rounds a text is broken up for a tokenizer that changes it before it looks for its tokens.
_MOST_ROUNDS = 3
# Tokens in a row that may be parts of a character, which has four bytes at most: behind more the model writes no text.
_MOST_PARTS = 32
# Beginnings of answers, to see whether a tokenizer reads them as it reads the same text alone.
_SAMPLES = ("A", "Yes", "1", "a")

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ChatTokenizer:
    """A tokenizer with its chat template, the ids that end a turn and a padding id that is none of them.

    ``stop_ids`` are all ids that end an answer, ``eos_id`` the one that the tokenizer names,
    ``pad_id`` a special token that the template does not use.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None) -> None:
        """Raise ``ValueError`` when the template, the end-of-turn or a padding token is missing.

        Also for a template that leaves out what somebody says, or has nothing between turns.
        """
        self.tokenizer = tokenizer
        self.name = str(tokenizer.name_or_path)
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template: of a policy set policy.chat_template, for example "
                "to chatml, or put a chat_template.jinja beside any model"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.name} has no EOS token: set eos_token in tokenizer_config.json")
        self.eos_id = int(tokenizer.eos_token_id)
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, *ids_of(generation and generation.eos_token_id)})
        added = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items()}
        self._special: dict[str, int] = {text: index for text, (index, token) in added.items() if token.special}
        self.pad_id = self._padding()
        plain = {text for text in added.keys() - self._special.keys() if has_symbol(text)}
        special = {text for text in self._special if text.strip()}
        try:
            self._form = read_form(self._apply_template, special | plain)
        except ValueError as error:
            raise ValueError(f"the chat template of {self.name} {error}") from error
        # Behind what the user says: its first line, for a template may name the assistant in the next.
        self._user_end = self._form.opening.strip().split("\n")[0].strip()
        in_answers = special | self._form.tokens
        # The template may look in an answer for tokens that it never writes itself, such as the end of its reasoning.
        in_messages = in_answers | {text for text in plain if text in str(tokenizer.chat_template)}
        self._break_up_special = breaker(special)
        self._break_up_answer = breaker(in_answers | self._form.phrases)
        self._break_up_message = breaker(in_messages | self._form.phrases)
        has_normal_form = tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer is not None
        self._in_normal_form = frozenset(
            index
            for text, (index, token) in added.items()
            if has_normal_form and token.normalized and text in in_answers
        )
        contexts = (self._form.opening, "\n", "0")
        self._contexts = [(before, self.encode(before)) for before in contexts if before]
        self._token_texts: dict[int, str] = {}
        self._letter = self.encode("a")[-1:]
        self._reads_in_context = any(self._in_context(text) != self.encode(text) for text in _SAMPLES)

    @classmethod
    def load(cls, model: str) -> "ChatTokenizer":
        """Load from a folder or hub id. Raises ``OSError`` that says what to do when there is none."""
        with loading(model):
            tokenizer = AutoTokenizer.from_pretrained(model)
            try:
                generation = GenerationConfig.from_pretrained(model)
            except OSError:  # The file is optional; what it would say is then in the model's config.
                generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))
        return cls(tokenizer, generation)

    def render(self, messages: Sequence[ChatMessage], *, to_answer: bool = True) -> str:
        """Text of a conversation in the model's template, up to the start of the assistant's turn.

        Without ``to_answer`` it ends behind the last message instead.

        Whatever the template uses to part turns, special tokens and plain text, is broken up by a space where a message
        contains it, so that a message can never close its own turn. A system text that the template would refuse or
        leave out is put before the next user message. Raises ``RefusedRequestError`` when the template refuses the
        conversation.
        """
        turns = [
            {"role": message.role, "content": self.shown(message)} for message in self._with_visible_system(messages)
        ]
        try:
            return self._apply_template(turns, to_answer)
        except jinja2.TemplateError as error:
            raise RefusedRequestError(f"the chat template of {self.name} refuses the conversation: {error}") from error

    def shown(self, message: ChatMessage) -> str:
        """What a message says as it is given to the template: with everything broken up that could end its turn."""
        return self._broken_up(message.content, answer=message.role == "assistant")

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, up to and including its ``assistant_prefix``.

        The prefix is encoded as if the model had written it after the template's tokens. Before a plain text comes the
        BOS that the tokenizer begins texts with, if any. Raises ``RefusedRequestError`` for a raw prompt that has no
        token, or one that the tokenizer does not know.
        """
        if prompt.raw is not None:
            return self._raw_ids(prompt.raw)
        if prompt.text:
            begun = [int(self.tokenizer.bos_token_id)] if begins_with_bos(self.tokenizer) else []
            return begun + self.encode(self._break_up_special(prompt.text))
        if prompt.as_user:
            return self.encode(self._before_user(prompt.messages))
        return self.encode(self.render(prompt.messages)) + self.answer_ids(prompt.assistant_prefix)

    def _before_user(self, messages: Sequence[ChatMessage]) -> str:
        """Text of a conversation up to where the user speaks next: a marked turn of the user's, cut at the mark."""
        before, mark, _ = self.render((*messages, ChatMessage("user", _MARK)), to_answer=False).partition(_MARK)
        if not mark:
            raise RefusedRequestError(f"the chat template of {self.name} leaves out what the user says next")
        return before

    def turn(self, prompt: Prompt, ids: Sequence[int], *, ended: bool) -> tuple[str, bool]:
        """Text of the ids that a model wrote behind a prompt, and whether it is whole.

        ``ended`` says whether the model ended it. Where the template ends what the user says by plain text, such as
        ``[/INST]``, the model goes on with an answer: a turn as the user ends there.
        """
        text = self.decode(ids)
        if not prompt.as_user or not self._user_end:
            return text, ended
        said, end, _ = text.partition(self._user_end)
        return said.rstrip() if end else text, ended or bool(end)

    def prompts_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """``prompt_ids`` of each; a ``RefusedRequestError`` names the index."""
        encoded = []
        for index, prompt in enumerate(prompts):
            try:
                encoded.append(self.prompt_ids(prompt))
            except RefusedRequestError as error:
                raise RefusedRequestError(f"prompt {index}: {error}") from error
        return encoded

    def _raw_ids(self, raw: str | tuple[int, ...]) -> list[int]:
        ids = list(self.tokenizer.encode(raw)) if isinstance(raw, str) else list(raw)
        if not ids:
            raise RefusedRequestError("is empty: the model has nothing to go on from")
        if strange := [index for index in ids if not 0 <= index < len(self.tokenizer)]:
            raise RefusedRequestError(f"token {strange[0]} is none of the {len(self.tokenizer)} of {self.name}")
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text, without the end of turn, as the model writes them behind a prompt.

        Where the template has white space before an answer, and the text does not begin with any, it is the model that
        writes it. A tokenizer that puts a space before every text (SentencePiece) does not do so here.
        """
        text = self._broken_up(text, answer=True)
        if not text:
            return []
        if not text[0].isspace():
            text = self._form.gap + text
        return self._in_context(text) if self._reads_in_context else self.encode(text)

    def continuation_ids(self, before: str, begun: Sequence[int], text: str) -> list[int]:
        """Token ids of rendered text that comes behind ``before``, whose own ids ``begun`` stay what they are."""
        whole = self.encode(before + text)
        if whole[: len(begun)] == list(begun):
            return whole[len(begun) :]
        return self._in_context(text) if self._reads_in_context else self.encode(text)

    def choice_prompts(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[tuple[list[int], tuple[int, ...]]]:
        """Token ids of each prompt, and the token of each choice that a model would write next there.

        Raises ``ValueError`` when a choice is not exactly one token, ``RefusedRequestError`` as ``prompts_ids``.
        """
        read = {prefix: self._choices_behind(prefix, choices) for prefix in {one.assistant_prefix for one in prompts}}
        asked = self.prompts_ids([replace(prompt, assistant_prefix="") for prompt in prompts])
        return [
            (ids + read[prompt.assistant_prefix][0], read[prompt.assistant_prefix][1])
            for ids, prompt in zip(asked, prompts, strict=True)
        ]

    def _choices_behind(self, prefix: str, choices: Sequence[str]) -> tuple[list[int], tuple[int, ...]]:
        """Token ids of a prefix and of each choice.

        White space between the two belongs to the choices where the tokenizer joins it with them.
        """
        begun = prefix.rstrip()
        space = prefix[len(begun) :]
        try:
            return self.answer_ids(prefix), tuple(self.choice_id(choice, prefix) for choice in choices)
        except ValueError as error:
            try:
                return self.answer_ids(begun), tuple(self.choice_id(space + choice, begun) for choice in choices)
            except ValueError:
                raise error from None

    def choice_id(self, text: str, prefix: str = "") -> int:
        """The token of a choice behind the beginning of an answer. Raises ``ValueError`` if it is not exactly one."""
        begun, whole = self.answer_ids(prefix), self.answer_ids(prefix + text)
        own = whole[len(begun) :]
        if whole[: len(begun)] == begun and len(own) == 1 and own[0] != self.tokenizer.unk_token_id:
            return own[0]
        problem = f"is {len(own)} tokens" if len(own) > 1 else "is no token of its own"
        behind = f" behind {prefix!r}" if prefix else ""
        raise ValueError(f"choice {text!r} {problem} for {self.name}{behind}; a choice must be exactly one")

    def encode(self, rendered: str) -> list[int]:
        """Token ids of rendered text; special tokens are read, none is added."""
        return list(self.tokenizer.encode(rendered, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids that a model wrote as its answer, without the end of turn if that is the last of them.

        Other special tokens stay in the text as they are spelled, and an id that the tokenizer does not know is the
        replacement character U+FFFD: who reads or scores the answer sees that it was written.
        """
        return self._spelled(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token as it stands behind those before it, special ones as they are spelled.

        A token may be a part of a character: the last of its parts has it, and the others are empty.
        """
        pieces: list[str] = []
        # Tokens before ``given`` have their text; those from ``start`` on are what the next one stands behind.
        start = given = 0
        for end in range(1, len(ids) + 1):
            behind, whole = self._spelled(ids[start:given]), self._spelled(ids[start:end])
            text = whole[len(behind) :]
            if text.endswith("\ufffd") and end < len(ids) and end - given < _MOST_PARTS:
                pieces.append("")
                continue
            pieces.append(text)
            start, given = given, end
        return pieces

    def _spelled(self, ids: Sequence[int]) -> str:
        written = list(ids)
        tokens = zip(written, self.tokenizer.convert_ids_to_tokens(written), strict=True)
        text = ""
        for known, run in groupby(tokens, lambda token: token[1] is not None):
            run_ids = [index for index, _ in run]
            text += str(self.tokenizer.decode(run_ids, skip_special_tokens=False)) if known else "\ufffd" * len(run_ids)
        return text

    def prompt_text(self, ids: Sequence[int]) -> str:
        """Text of a prompt's tokens, special ones as they are spelled."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_text(self, index: int) -> str:
        """Text of one token as it stands behind others; a part of a character is U+FFFD."""
        text = self._token_texts.get(index)
        if text is None:
            # Alone, a token that begins with a space may lose it (SentencePiece).
            before, both = self.prompt_text(self._letter), self.prompt_text([*self._letter, index])
            known = self.tokenizer.convert_ids_to_tokens(index) is not None
            text = self._token_texts[index] = both.removeprefix(before) if known else "\ufffd"
        return text

    def place(self, token: int, logprob: float | None, top: Iterable[tuple[int, float]]) -> TokenPlace:
        """A token with its log-prob, and the likeliest ones in its place, as texts too."""
        return TokenPlace(TokenLogprob(token, self.token_text(token), logprob), self.with_texts(top))

    def with_texts(self, top: Iterable[tuple[int, float]]) -> tuple[TokenLogprob, ...]:
        """Tokens and log-probs, with the texts of the tokens."""
        return tuple(TokenLogprob(index, self.token_text(index), logprob) for index, logprob in top)

    def _apply_template(self, turns: Sequence[Mapping[str, str]], to_answer: bool = True) -> str:
        return str(self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=to_answer))

    def _with_visible_system(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        form = self._form
        return moved_to_user(
            messages, at_start=not form.shows_system, later=not form.shows_later_system, name=self.name
        )

    def _broken_up(self, text: str, *, answer: bool) -> str:
        text = self._break_up_answer(text) if answer else self._break_up_message(text)
        for _ in range(_MOST_ROUNDS if self._in_normal_form else 0):
            spans = self._tokens_in_normal_form(text)
            if not spans:
                return text
            for start, end in reversed(spans):
                text = text[:start] + with_space(text[start:end]) + text[end:]
        if self._in_normal_form and self._tokens_in_normal_form(text):
            raise RefusedRequestError(f"the tokenizer of {self.name} finds special tokens in a text, broken up or not")
        return text

    def _tokens_in_normal_form(self, text: str) -> list[tuple[int, int]]:
        """Where the tokenizer finds one of its tokens after it has changed the text, to lower case for example."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = []
        for index, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if index in self._in_normal_form:
                found = text[start:end]  # With the white space around it that some tokens swallow.
                spans.append((end - len(found.lstrip()), start + len(found.rstrip())))
        return spans

    def _in_context(self, text: str) -> list[int]:
        """Token ids of a text that goes on behind others, whatever the tokenizer does at the beginning of a text."""
        for before, begun in self._contexts:
            whole = self.encode(before + text)
            if whole[: len(begun)] == begun:
                return whole[len(begun) :]
        return self.encode(text)

    def _padding(self) -> int:
        found = padding_id(self.tokenizer, self.stop_ids)
        if found is None:
            raise ValueError(
                f"the tokenizer of {self.name} has no special token left for padding (PAD must differ from EOS): "
                "add one, for example <|pad|>, and resize the model's embeddings"
            )
        return found


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins a text with its BOS, as the model has learned to read one."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer.encode("a"))[:1] == [bos]


def padding_id(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> int | None:
    """A special token that ends nothing and that the chat template does not use; None when there is none."""
    added = tokenizer.added_tokens_decoder.items()
    special: dict[str, int] = {token.content: index for index, token in added if token.special}
    for token in (tokenizer.pad_token, *_USUAL_PADDING, *special):
        index = special.get(token) if token else None
        free = index not in stop_ids and token != tokenizer.bos_token
        if index is not None and free and token not in str(tokenizer.chat_template):
            return index
    return None


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Around the loading of a model or tokenizer: an ``OSError`` says which one, and what to give instead."""
    advice = "give a Hugging Face model folder (with config.json) or the id of a reachable hub model (org/name)"
    if model and Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise FileNotFoundError(f"the folder {model!r} holds no config.json: {advice}")
    elif not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(f"no model folder {model!r}: {advice}")
    try:
        yield
    except OSError as error:
        raise OSError(f"the model {model!r} cannot be loaded: {advice}. Cause: {error}") from error


def ids_of(value: int | Iterable[int] | None) -> list[int]:
    """Token ids as a config names them: none, one, or several."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
