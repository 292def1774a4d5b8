"""The preference model: a causal language model with a scalar head, its template, and its loss."""

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel

from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt, WeightMismatchError
from charter.inference.local.cpu_memory import keep_freed_memory
from charter.inference.local.model import config_without_dropout, load_whole, max_context_tokens
from charter.inference.local.model_check import longest_in_row, state_width
from charter.inference.local.prefix_tree import Wanted, whole_tree
from charter.inference.local.tree_model import tree_arguments

_FORMAT = 1
_DESCRIPTION = "charter.json"
_HEAD = "head.safetensors"
# Of what has been saved, the folder of each further member that has a backbone of its own; and its tensors' prefix.
_MEMBER = "member-{}"
_MORE = "more_backbones."


def encode(tokenizer: ChatTokenizer, messages: Sequence[ChatMessage], answer: str) -> list[int]:
    """Token ids of an answer to a conversation, as they are fitted and scored.

    The conversation by the chat template, up to the start of the assistant's turn; the answer; EOS. It is the sequence
    that a policy with the same tokenizer reads and writes, and its last id is always EOS. Raises ``ValueError`` when
    the template refuses the conversation.
    """
    return [*tokenizer.prompt_ids(Prompt(tuple(messages))), *encode_answer(tokenizer, answer)]


def encode_answer(tokenizer: ChatTokenizer, answer: str) -> list[int]:
    """What ``encode`` puts behind the conversation."""
    return [*tokenizer.answer_ids(answer), tokenizer.eos_id]


def soft_label_loss(
    difference: Tensor, probability_a: Tensor, margin: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the Bradley-Terry model against soft labels, in nats, mean over pairs.

    ``-p log sigmoid(d - m) - (1 - p) log sigmoid(-d - m)``. With ``p`` = 1 it is the Bradley-Terry loss
    ``-log sigmoid(d - m)`` of Ouyang et al. 2022 (equation 1), and with the margin ``m`` that of Touvron et al. 2023
    ("Llama 2", equation 2); with soft ``p`` and no margin that of Lee et al. 2023 ("RLAIF", section 2.1).

    Args:
        difference: score of A minus score of B, [pairs].
        probability_a: soft label P(A is better) in [0, 1], [pairs].
        margin: distance >= 0 that the preferred answer must be ahead by, [pairs]. None = 0.
        weight: factor of each pair's loss, [pairs]; the sum is still divided by the number of pairs. None = 1.
    """
    toward_a, toward_b = difference, -difference
    if margin is not None:
        toward_a, toward_b = toward_a - margin, toward_b - margin
    losses = -probability_a * F.logsigmoid(toward_a) - (1 - probability_a) * F.logsigmoid(toward_b)
    return (losses if weight is None else losses * weight).mean()


class Aggregation(IntEnum):
    """How the scores of an ensemble's members become one."""

    MEAN = 0
    WORST = 1
    # Mean less ``uncertainty_weight`` standard deviations.
    MEAN_MINUS_UNCERTAINTY = 2


class PreferenceModel(nn.Module):
    """A causal language model's backbone with a scalar head that is read at the EOS of the last turn.

    An ensemble has one head for each member, on the same backbone or each on its own (``more_backbones`` are those of
    all members but the first); ``aggregation`` makes their scores into one.

    ``offset`` is subtracted from every score; the worker sets it so that answers of the starting policy score 0 on
    average ("The N+ Implementation Details of RLHF with PPO", arXiv 2403.17031, detail 15). A difference of two
    scores does not depend on it.
    """

    backbone: Any
    offset: Tensor
    aggregation: Tensor
    uncertainty_weight: Tensor
    template_digest: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: ChatTokenizer,
        head: nn.Linear,
        more_backbones: Iterable[PreTrainedModel] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.more_backbones = nn.ModuleList(more_backbones)
        # Most tokens of each of several sequences that go through the model in one row; 0 if none may.
        self.longest_in_row = min(_longest_in_row(one) for one in self.backbones)
        self.head = head
        self.tokenizer = tokenizer
        self.register_buffer("offset", torch.zeros(()))
        # As tensors, so that they too travel with the weights.
        self.register_buffer("aggregation", torch.tensor(int(Aggregation.MEAN)))
        self.register_buffer("uncertainty_weight", torch.ones(()))
        # Travels with the weights, so that they are never served under another template or vocabulary.
        self.register_buffer("template_digest", _template_digest(tokenizer))

    @classmethod
    def from_causal_lm(
        cls, model: str | Path, seed: int, members: int = 1, *, separate: bool = False
    ) -> "PreferenceModel":
        """Start from a causal language model (folder or hub id): its backbone, and a random head for each member.

        With ``separate`` each member has a copy of the backbone.

        Head: weights normal with standard deviation ``1 / sqrt(d + 1)``, bias 0 (arXiv 2403.17031, detail 11 and its
        code). Dropout is off and everything is float32.

        Raises:
            OSError: the model cannot be found.
            ValueError: its tokenizer has no chat template, EOS or padding token.
        """
        backbone, tokenizer = _load_backbone(model)
        width = state_width(backbone)
        head = nn.Linear(width, members)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(0.0, 1 / math.sqrt(width + 1), generator=generator)
            head.bias.zero_()
        return cls(backbone, tokenizer, head, (copy.deepcopy(backbone) for _ in range(members - 1) if separate))

    @classmethod
    def load(cls, folder: Path) -> "PreferenceModel":
        """Load what ``save`` wrote.

        Raises:
            OSError: a file is missing.
            ValueError: the folder holds no preference model, or its tokenizer is not the one it was fitted with.
        """
        try:
            description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / _DESCRIPTION} is damaged: {error}") from error
        known = description if isinstance(description, dict) else {}
        if known.get("format") != _FORMAT or known.get("kind") != "preference_model":
            raise ValueError(f"{folder / _DESCRIPTION} does not describe a preference model of format {_FORMAT}")
        backbone, tokenizer = _load_backbone(folder)
        tensors = load_file(folder / _HEAD)
        members = len(tensors["head.weight"])
        further = [folder / _MEMBER.format(member) for member in range(1, members)]
        more = [_load_backbone(one)[0] for one in further if description.get("separate")]
        model = cls(backbone, tokenizer, nn.Linear(tensors["head.weight"].shape[1], members), more)
        if not torch.equal(tensors["template_digest"], model.template_digest):
            raise ValueError(f"the tokenizer or chat template in {folder} is not the one the model was fitted with")
        model.load_state_dict(tensors, strict=False)
        return model

    def save(self, folder: Path) -> None:
        """Write a folder that ``load`` reads: backbone in the Hugging Face layout, tokenizer, head, charter.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for member, backbone in enumerate(self.backbones):
            place = folder / _MEMBER.format(member) if member else folder
            backbone.save_pretrained(place)
            self.tokenizer.tokenizer.save_pretrained(place)
        tensors = self.state_tensors()
        head = {name: tensors[name] for name in tensors if not name.startswith(("backbone.", _MORE))}
        save_file(head, folder / _HEAD)
        description = {
            "format": _FORMAT,
            "kind": "preference_model",
            "separate": self.separate,
            "chat_template": self.tokenizer.tokenizer.chat_template,
            "end_of_answer": self.tokenizer.tokenizer.eos_token,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False), encoding="utf-8")

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of conversation, answer and EOS together."""
        return max_context_tokens(self.backbone.config)

    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Centred scores, float32 [sequences]: what the members say, aggregated.

        ``sequences`` are token ids as ``encode`` gives them. All go through the model at once, what several of them
        begin with only once.
        """
        return self.aggregate(self.member_scores(sequences))

    def member_scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Centred scores of each member, float32 [sequences, members]. Arguments as ``scores``."""
        read = self.features(sequences)
        scores: Tensor = self.head(read) if not self.separate else self._each_its_own(read)
        return scores.float() - self.offset

    def _each_its_own(self, read: Tensor) -> Tensor:
        """Scores of separate members, [sequences, members], from ``features``."""
        parts = read.view(len(read), self.members, self.head.in_features)
        return (parts * self.head.weight).sum(dim=2) + self.head.bias

    def aggregate(self, member_scores: Tensor) -> Tensor:
        """One score of what the members say: [sequences, members] -> [sequences]. The deviation is the population's.

        Mean, worst case, and mean less uncertainty are those of Coste et al. 2023 ("Reward Model Ensembles Help
        Mitigate Overoptimization", section 3.2), with the deviation in place of the variance, in units of the score.
        """
        mean = member_scores.mean(dim=-1)
        match Aggregation(int(self.aggregation)):
            case Aggregation.MEAN:
                return mean
            case Aggregation.WORST:
                return member_scores.amin(dim=-1)
            case Aggregation.MEAN_MINUS_UNCERTAINTY:
                return mean - self.uncertainty_weight * member_scores.std(dim=-1, correction=0)

    @torch.no_grad()
    def aggregate_by(self, aggregation: Aggregation, uncertainty_weight: float) -> None:
        """Choose how ``scores`` aggregates from now on."""
        self.aggregation.fill_(int(aggregation))
        self.uncertainty_weight.fill_(uncertainty_weight)

    @property
    def members(self) -> int:
        """Heads of the ensemble; 1 where there is none."""
        return int(self.head.out_features)

    @property
    def separate(self) -> bool:
        """Each member has a backbone of its own."""
        return len(self.more_backbones) > 0

    @property
    def backbones(self) -> list[Any]:
        """That of all members, or of each."""
        return [self.backbone, *self.more_backbones]

    def features(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """What the head reads: the hidden state at EOS, [sequences, width]. Arguments as ``scores``.

        Of separate members side by side, [sequences, members * width]: each reads its own part.
        """
        hidden = [self._last_states(one, sequences) for one in self.backbones]
        return torch.cat(hidden, dim=1).to(self.head.weight.dtype)

    def _last_states(self, backbone: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
        """A backbone's hidden state at the last token of each sequence, [sequences, width]."""
        device = self.head.weight.device
        if max(map(len, sequences)) > self.longest_in_row:
            rows = (torch.tensor([ids], device=device) for ids in sequences)
            return torch.cat([backbone(input_ids=row, use_cache=False).last_hidden_state[:, -1] for row in rows])
        wanted = [Wanted(index, ids, len(ids) - 1) for index, ids in enumerate(sequences)]
        tree = whole_tree(wanted)
        states: Tensor = backbone(**tree_arguments(tree, device, backbone.config)).last_hidden_state[0]
        return states[[tree.places[index][0] for index in range(len(sequences))]]

    @property
    def shares(self) -> bool:
        """What sequences begin with is computed once; otherwise each goes through the model alone."""
        return self.longest_in_row > 0

    def part(self, member: int) -> slice:
        """Which of the ``features`` a member reads."""
        width = self.head.in_features
        return slice(member * width, (member + 1) * width) if self.separate else slice(0, width)

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Same as ``scores``."""
        return self.scores(sequences)

    @torch.no_grad()
    def centre(self, scores: Tensor) -> None:
        """Move ``offset`` so that these scores, as given by ``scores``, would have mean 0. [answers]."""
        self.offset += scores.to(self.offset).mean()

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that scores depend on, by name, on the CPU: backbone, head, offset, template digest."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load_tensors(self, path: Path) -> None:
        """Take over the tensors of a safetensors file that holds what ``state_tensors`` gives.

        The file's ensemble may have another number of members, or of backbones. Raises ``WeightMismatchError`` and
        changes nothing when a tensor is unknown, missing or of the wrong shape, or when the weights were fitted with
        another tokenizer or chat template.
        """
        try:
            with safe_open(path, framework="pt") as file:
                head = self._head_for(file)
                more = self._more_backbones_for(file, head.out_features)
                own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(_MORE)}
                own |= {"head.weight": head.weight, "head.bias": head.bias}
                own |= {_MORE + name: tensor for name, tensor in more.state_dict().items()}
                self._check_tensors(file, own)
                for name, tensor in own.items():
                    tensor.copy_(file.get_tensor(name))
                self.head, self.more_backbones = head, more
        except SafetensorError as error:
            raise WeightMismatchError(f"not a readable safetensors file: {error}") from error

    def _head_for(self, file: Any) -> nn.Linear:
        """The model's head, or a new one for as many members as the file has."""
        if "head.weight" not in set(file.keys()):
            return self.head
        shape = file.get_slice("head.weight").get_shape()
        if len(shape) != 2 or shape[0] in (0, self.members):
            return self.head
        return nn.Linear(self.head.in_features, shape[0], device=self.head.weight.device, dtype=self.head.weight.dtype)

    def _more_backbones_for(self, file: Any, members: int) -> nn.ModuleList:
        """The model's further backbones, or as many new ones as the file has."""
        names = [name for name in set(file.keys()) if name.startswith(_MORE)]
        found = len({name.removeprefix(_MORE).partition(".")[0] for name in names})
        if found == len(self.more_backbones):
            return self.more_backbones
        if found not in (0, members - 1):
            raise WeightMismatchError(f"{found + 1} backbones for {members} members: expected 1 or {members}")
        return nn.ModuleList(copy.deepcopy(self.backbone) for _ in range(found))

    def _check_tensors(self, file: Any, own: dict[str, Tensor]) -> None:
        names = set(file.keys())
        if unknown := sorted(names - own.keys()):
            raise WeightMismatchError(f"unknown tensors: {_few(unknown)}")
        if missing := sorted(own.keys() - names):
            raise WeightMismatchError(f"missing tensors: {_few(missing)}")
        for name in sorted(names):
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(own[name].shape):
                raise WeightMismatchError(f"tensor {name} has shape {shape}, expected {tuple(own[name].shape)}")
        if not torch.equal(file.get_tensor("template_digest"), self.template_digest.cpu()):
            raise WeightMismatchError("the weights were fitted with another tokenizer or chat template")


def _load_backbone(model: str | Path) -> tuple[Any, ChatTokenizer]:
    """Backbone in float32 without dropout, and tokenizer."""
    keep_freed_memory()
    tokenizer = ChatTokenizer.load(str(model))
    backbone = load_whole(AutoModel, model, config=config_without_dropout(model), dtype=torch.float32)
    return backbone.eval(), tokenizer


def _longest_in_row(backbone: PreTrainedModel) -> int:
    return longest_in_row(backbone, lambda tree: tree_arguments(tree, backbone.device, backbone.config))


def _template_digest(tokenizer: ChatTokenizer) -> Tensor:
    """sha256 of what turns messages into token ids: chat template, EOS and vocabulary; uint8 [32]."""
    vocabulary = sorted(tokenizer.tokenizer.get_vocab().items())
    parts = json.dumps([tokenizer.tokenizer.chat_template, tokenizer.eos_id, vocabulary])
    return torch.frombuffer(bytearray(hashlib.sha256(parts.encode()).digest()), dtype=torch.uint8)


def _few(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
