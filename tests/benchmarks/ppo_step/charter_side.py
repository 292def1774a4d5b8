"""Charter's side: engine, scorer and learner of the services and the worker, in one process without the network.

A step samples, scores, updates, and gives the engine the new weights through a safetensors file, as a run does.
"""

import asyncio
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from charter.inference.engine import Finish, Prompt, Sampling
from charter.inference.local.engine import TransformersEngine
from charter.inference.preference_model import PreferenceModel
from charter.preference.models import PreferenceModels
from charter.preference.scorer import ScoreInput
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.weights.sender import pack_weights
from charter.worker.clients.policy import Answer
from charter.worker.reinforcement.sampling.rollouts import episodes_of
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from charter.worker.training.batches import Episodes
from charter.worker.training.models import Critic, LanguageModel, named_tensors

from tests.benchmarks.ppo_step.paired import arguments, prompts
from tests.benchmarks.turns import Turns

_GEMM = 2048


async def main(options: Namespace) -> None:
    """Set up, then a step for each turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        PreferenceModel.from_causal_lm(options.model, seed=0).save(Path(folder) / "preference")
        engine = TransformersEngine(options.model, dtype=options.precision)
        models = PreferenceModels({"default": str(Path(folder) / "preference")})
        await engine.start()
        await models.start()
        learner = make_learner(options, device)
        operations = Operations(learner)
        controls, turns = Controls(learner.spec.kl_coefficient), Turns()
        asked = prompts(options)
        for step in range(options.steps + 1):
            turns.wait()
            peak = gemm_peak(device, options.precision)
            turns.begin()
            batch = asked[step * options.episodes : (step + 1) * options.episodes]
            start = time.monotonic()
            answers = await sample(engine, batch, options.tokens, seed=step)
            sampled = time.monotonic()
            inputs = [ScoreInput(prompt.messages, one.text) for prompt, one in zip(batch, answers, strict=True)]
            scores = {one.index: one.value async for one in models.first.score(inputs)}
            scored = time.monotonic()
            # Strictly on-policy: the engine holds what the step before has sent.
            episodes = episodes_of(answers, [scores[index] for index in range(len(batch))], step)
            _, controls, _ = learn(learner, episodes, step, controls)
            updated = time.monotonic()
            packed = pack_weights(named_tensors(learner.actor.model), step + 1)
            path = Path(folder) / "weights.safetensors"
            path.write_bytes(packed.blob)
            await engine.load_weights(path, packed.version, packed.sha256)
            turns.done(
                answer_tokens=float(sum(len(one.token_ids) for one in answers)),
                sampling_seconds=sampled - start,
                scoring_seconds=scored - sampled,
                update_seconds=updated - scored,
                sending_seconds=time.monotonic() - updated,
                update_operations=operations.take(episodes),
                gemm_operations_per_second=peak,
            )
        await models.stop()
        await engine.stop()


def make_learner(options: Namespace, device: torch.device) -> Learner:
    """Two minibatches of one pass, everything else by default."""
    spec = fill_defaults(run_pb2.RunSpec()).ppo
    spec.steps, spec.episodes_per_step, spec.minibatches = options.steps + 1, options.episodes, 2
    spec.precision, spec.shared_trunk = options.precision, bool(options.shared_trunk)
    return Learner(
        spec=spec,
        temperature=1.0,
        actor=LanguageModel.load(options.model, device, shared_trunk=spec.shared_trunk),
        reference=LanguageModel.load(options.model, device),
        critic=None if spec.shared_trunk else Critic.from_policy(options.model, device),
        device=device,
    )


async def sample(engine: TransformersEngine, batch: Sequence[Prompt], tokens: int, seed: int) -> list[Answer]:
    """An answer to each prompt."""
    found = {one.prompt_index: one async for one in engine.generate(batch, Sampling(tokens, seed=seed))}
    return [
        Answer(
            text=one.text,
            prompt_token_ids=one.prompt_token_ids,
            token_ids=one.token_ids,
            logprobs=np.array(one.logprobs, dtype=np.float32),
            versions=tuple(span.version for span in one.version_spans for _ in range(span.start, span.end)),
            ended=one.finish is Finish.EOS,
        )
        for one in (found[index] for index in range(len(batch)))
    ]


class Operations:
    """Counts the floating-point operations of an update's matrix products with weights; attention is left out.

    A forward pass takes 2 for each weight and token that is computed, a backward pass 4 (Kaplan et al. 2020, section
    2.1). What is computed again for the backward pass is not counted.
    """

    def __init__(self, learner: Learner) -> None:
        self.trunks = 0.0
        assert learner.reference is not None
        self._head = learner.actor.model.get_output_embeddings().weight.numel()
        trunks = [learner.actor.model.base_model, learner.reference.model.base_model]
        trunks += [learner.critic.backbone] if learner.critic is not None else []
        for trunk in trunks:
            trunk.register_forward_hook(self._count, with_kwargs=True)
        self._weights = sum(one.weight.numel() for one in trunk.modules() if isinstance(one, torch.nn.Linear))

    def _count(self, trunk: torch.nn.Module, _: object, named: dict[str, torch.Tensor], output: object) -> None:
        self.trunks += (6 if torch.is_grad_enabled() else 2) * self._weights * named["input_ids"].numel()

    def take(self, episodes: Episodes) -> float:
        """Those since the last call. The heads of policy and reference read answers only, that of the policy twice."""
        trunks, self.trunks = self.trunks, 0.0
        return float(trunks + (2 * 2 + 6) * self._head * sum(map(len, episodes.answers)))


def gemm_peak(device: torch.device, precision: str) -> float:
    """Operations per second of square matrix products, the best of many."""
    left, right = torch.randn(2, _GEMM, _GEMM, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(30):
        start = time.monotonic()
        product = left @ right
        # Waits for the device.
        product[0, 0].item()
        best = min(best, time.monotonic() - start)
    return 2.0 * _GEMM**3 / best


if __name__ == "__main__":
    asyncio.run(main(arguments(__doc__ or "").parse_args()))
