"""The real model: what the policy service samples is what the trainer computes again."""

from pathlib import Path

import pytest
import torch
from charter.data.prompts import read_prompts
from charter.policy import server as policy
from charter.runs.artifacts import Artifacts
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.clients.services import Services
from charter.worker.reinforcement.sampling.rollouts import episodes_of
from charter.worker.reporter import Reporter
from charter.worker.training.batches import collate, scatter
from charter.worker.training.models import LanguageModel, named_tensors

from tests.support.harness import running
from tests.support.worker_services import write_jsonl

PROMPTS = ["Name three colours.", "Why is the sky blue? Answer in one sentence.", "Say hello to my cat Mia."]


@pytest.mark.real_model
def test_sampler_and_trainer_agree_before_and_after_an_update(real_model: Path, tmp_path: Path) -> None:
    """Log-probs of sampled tokens at temperature 0.8, with answers of different lengths, for both weight versions."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    messages = [prompt.messages for prompt in read_prompts(tmp_path / "prompts.jsonl")]
    model = LanguageModel.load(real_model, torch.device("cpu"))
    config = policy.PolicyConfig(str(real_model), tmp_path / "staging", engine="transformers")
    with running(policy.build(config)) as at:
        spec = fill_defaults(run_pb2.RunSpec(sampling=run_pb2.SamplingSpec(temperature=0.8, max_new_tokens=16)))
        addresses = run_pb2.ServiceAddresses(
            policy=[at.main], policy_control=[at.control], judge=at.main, preference=at.main
        )
        services = Services(addresses, Reporter(Artifacts(tmp_path, "run"), "run", 1, ""))
        generator = torch.Generator().manual_seed(0)
        for version in (1, 2):
            services.policy.send(named_tensors(model.model), version)
            answers = [
                one for (one,) in services.policy.generate(messages, spec.sampling, version=version, seed=version)
            ]
            episodes = episodes_of(answers, [0.0] * len(answers), version)
            with torch.no_grad():
                flat = model.logprobs(collate(episodes, range(len(answers)), torch.device("cpu")), 0.8)
                difference = (scatter(flat, episodes.mask) - episodes.sampler_logprobs).abs().max().item()
                assert difference < 1e-3, f"version {version}"
                # The next version is another model, so that old weights could not pass for new ones.
                for parameter in model.parameters():
                    parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
        services.close()
