"""lm-evaluation-harness and inspect as they are, on the gateway, against what Transformers computes of the same model.

`make test-harnesses` installs them into an environment of their own, whose Python CHARTER_TEST_HARNESSES names.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from charter.policy.server import PolicyConfig, build
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.support.gateway import gateway
from tests.support.harness import running

PYTHON = os.environ.get("CHARTER_TEST_HARNESSES", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="`make test-harnesses` installs the harnesses")

CHOICES = [
    {"question": "The sky is", "choices": [" blue", " green", " a kind of cheese"], "answer": 0},
    {"question": "Two and two are", "choices": [" five", " four"], "answer": 1},
    # As text both of its tokens are U+FFFD.
    {"question": "Tea with a slice of", "choices": [" é", " ham"], "answer": 1},
]
QUESTIONS = ["Once upon", "Hello, my"]
TOKENS = 12


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    policy = PolicyConfig(str(tiny_model), tmp_path_factory.mktemp("staging"))
    with running(build(policy)) as at, gateway(at.main) as found:
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def run(*command: str, folder: Path, **environment: str) -> str:
    """Run a harness as a program that knows nothing of Charter and reaches no hub."""
    # A harness runs in another folder. Not resolved: the Python of an environment is a link out of it.
    programs = Path(PYTHON).parent.absolute()
    own = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    ended = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=own | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def likelihood(model: Any, question: Sequence[int], choice: Sequence[int]) -> tuple[float, bool]:
    """Log-likelihood of a choice behind a question, and whether each of its tokens is the likeliest."""
    with torch.no_grad():
        rows = model(torch.tensor([[*question, *choice]])).logits[0].log_softmax(-1)[len(question) - 1 : -1]
    targets = torch.tensor(choice)
    return float(rows.gather(1, targets.unsqueeze(1)).sum()), bool((rows.argmax(-1) == targets).all())


def continued(model: Any, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What the model writes greedily."""
    given = torch.tensor([list(ids)])
    written = model.generate(given, max_new_tokens=TOKENS, do_sample=False)[0, given.shape[1] :].tolist()
    return str(tokenizer.decode([one for one in written if one != tokenizer.eos_token_id]))


def write_jsonl(file: Path, rows: Sequence[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lm_evaluation_harness(
    url: str, tiny_model: Path, model: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    stop = continued(model, tokenizer, tokenizer.encode(QUESTIONS[0]))[6]
    tasks: dict[str, dict[str, Any]] = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_target": "none",
            "generation_kwargs": {"until": ["no such text", stop], "max_gen_toks": TOKENS, "temperature": 0},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    write_jsonl(tmp_path / "choose.jsonl", CHOICES)
    write_jsonl(tmp_path / "write.jsonl", [{"question": one} for one in QUESTIONS])
    for name, task in tasks.items():
        data: dict[str, Any] = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}},
        }
        common = {"task": name, "test_split": "test", "doc_to_text": "{{question}}"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(common | data | task))
    arguments = (
        f"base_url={url}/completions,model=tiny,tokenizer={tiny_model},tokenizer_backend=huggingface,"
        "max_length=512,num_concurrent=3"
    )
    asked = ("--model", "local-completions", "--model_args", arguments, "--tasks", "choose,write")
    run("lm_eval", "run", *asked, "--include_path", ".", "--log_samples", "--output_path", "out", folder=tmp_path)

    samples = {
        file.name.split("_")[1]: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (tmp_path / "out").rglob("samples_*.jsonl")
    }
    right = 0
    for row, found in zip(CHOICES, samples["choose"], strict=True):
        question = tokenizer.encode(str(row["question"]))
        own = [likelihood(model, question, tokenizer.encode(one)) for one in row["choices"]]  # type: ignore[attr-defined]
        asked_of = [(float(one[0][0]), one[0][1] == "True") for one in found["resps"]]
        assert [one for one, _ in asked_of] == pytest.approx([one for one, _ in own], abs=1e-3)
        assert [one for _, one in asked_of] == [one for _, one in own]
        right += max(range(len(own)), key=lambda index: own[index][0]) == row["answer"]
    (results,) = (json.loads(file.read_text()) for file in (tmp_path / "out").rglob("results_*.json"))
    assert results["results"]["choose"]["acc,none"] == pytest.approx(right / len(CHOICES))
    written = [one["resps"][0][0] for one in samples["write"]]
    assert written == [continued(model, tokenizer, tokenizer.encode(one)).partition(stop)[0] for one in QUESTIONS]


TASK = """
import json
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import exact

@task
def greet():
    config = GenerateConfig(temperature=0, max_tokens=TOKENS, logprobs=True, top_logprobs=2)
    return Task(dataset=json_dataset("greet.jsonl"), scorer=exact(), config=config)
"""


def test_inspect(url: str, model: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], add_generation_prompt=True, return_dict=False)
        for one in QUESTIONS
    ]
    expected = [continued(model, tokenizer, ids) for ids in chats]
    write_jsonl(
        tmp_path / "greet.jsonl",
        [{"input": one, "target": target} for one, target in zip(QUESTIONS, expected, strict=True)],
    )
    (tmp_path / "greet.py").write_text(TASK.replace("TOKENS", str(TOKENS)))
    asked = (
        "--model",
        "openai-api/charter/tiny",
        "--model-base-url",
        url,
        "--log-format",
        "json",
        "--display",
        "plain",
    )
    logs = ("--log-dir", "logs", "--log-format", "json")
    run("inspect", "eval", "greet.py", *asked, *logs, folder=tmp_path, CHARTER_API_KEY="any")

    (log,) = (json.loads(file.read_text()) for file in (tmp_path / "logs").glob("*.json"))
    assert log["status"] == "success"
    outputs = [sample["output"] for sample in log["samples"]]
    assert [one["choices"][0]["message"]["content"] for one in outputs] == expected
    for ids, one in zip(chats, outputs, strict=True):
        given = one["choices"][0]["logprobs"]["content"]
        assert one["usage"]["input_tokens"] == len(ids)
        assert one["usage"]["output_tokens"] == len(given)
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert given[0]["logprob"] == pytest.approx(float(row.max()), abs=1e-4)
