"""Chat templates: from a conversation to the token ids that a model reads, and back to text."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jinja2
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from charter.chat import ChatMessage
from charter.inference.engine import Prompt, RefusedRequestError

# Tokens that exist for padding or can be borrowed for it, tried before any other special token.
_USUAL_PADDING = ("<|endoftext|>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ChatTokenizer:
    """A tokenizer with its chat template, the ids that end a turn and a padding id that is none of them.

    ``stop_ids`` are all ids that end an answer, ``eos_id`` the one that the tokenizer names,
    ``pad_id`` a special token that the template does not use.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None) -> None:
        """Raise ``ValueError`` when the template, the end-of-turn or a padding token is missing."""
        self.tokenizer = tokenizer
        self.name = str(tokenizer.name_or_path)
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {self.name} has no chat template: put a chat_template.jinja beside it")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.name} has no EOS token: set eos_token in tokenizer_config.json")
        self.eos_id = int(tokenizer.eos_token_id)
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, *_ids(generation and generation.eos_token_id)})
        self._special: dict[str, int] = {
            token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.pad_id = self._choose_pad()

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

    def render(self, messages: Sequence[ChatMessage], *, answer_follows: bool = True) -> str:
        """Text of a conversation in the model's template, up to the start of the assistant's turn.

        Special tokens written inside a message are broken up by a space, so that a message can never
        close its own turn. With ``answer_follows=False`` the text ends with the last message. Raises
        ``RefusedRequestError`` when the template refuses the conversation.
        """
        turns = [{"role": message.role, "content": self._defused(message.content)} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_follows)
        except jinja2.TemplateError as error:
            raise RefusedRequestError(f"the chat template of {self.name} refuses the conversation: {error}") from error
        return str(text)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, up to and including its ``assistant_prefix``.

        The prefix is encoded by itself, as if the model had written it after the template's tokens.
        """
        ids = self.encode(self.render(prompt.messages))
        return ids + self.answer_ids(prompt.assistant_prefix)

    def prompts_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """``prompt_ids`` of each; a ``RefusedRequestError`` names the index."""
        encoded = []
        for index, prompt in enumerate(prompts):
            try:
                encoded.append(self.prompt_ids(prompt))
            except RefusedRequestError as error:
                raise RefusedRequestError(f"prompt {index}: {error}") from error
        return encoded

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text, without the end of turn."""
        return self.encode(self._defused(text)) if text else []

    def choice_id(self, text: str) -> int:
        """The one token of a choice. Raises ``ValueError`` when it is not exactly one."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise ValueError(f"choice {text!r} is {len(ids)} tokens for {self.name}; a choice must be exactly one")
        return ids[0]

    def encode(self, rendered: str) -> list[int]:
        """Token ids of rendered text; special tokens are read, none is added."""
        return list(self.tokenizer.encode(rendered, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids; special tokens, the end of turn among them, are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _defused(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _choose_pad(self) -> int:
        used = {self.tokenizer.bos_token}
        template = str(self.tokenizer.chat_template)
        for token in (self.tokenizer.pad_token, *_USUAL_PADDING, *self._special):
            index = self._special.get(token) if token else None
            if index is not None and index not in self.stop_ids and token not in used and token not in template:
                return index
        raise ValueError(
            f"the tokenizer of {self.name} has no special token left for padding (PAD must differ from EOS): "
            "add one, for example <|pad|>, and resize the model's embeddings"
        )


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


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
