"""What was done to a model, in a sentence and as tags of the hub, as the twin of its card has it."""

from charter.evaluation.card.twin import Reinforcement, Twin
from charter.evaluation.report.label_sources import LABEL_SOURCES
from charter.listed import listed
from charter.spec.facts import ALGORITHM_TITLES

_STAGES = {
    "pretraining": "it learned from texts",
    "supervised": "it was fine-tuned on conversations",
    "revised": "it learned from its own answers as a judge model had revised them by the constitution",
    "dpo": "it learned from comparisons of answers (DPO)",
    "kto": "it learned from answers with a thumb up or down (KTO)",
}
_REWARDS = {
    "preference_model": "that model",
    "judge_rating": "the judge model's ratings of its answers by the constitution",
    "service": "a scoring service of the user's",
}
_PULLS = {"reward": "a KL penalty in the reward", "loss": "a KL penalty in the loss", "beta": "the loss itself"}


def how(twin: Twin) -> str:
    """What was done to the model, as a sentence goes on behind its name."""
    before = [_STAGES[stage.name] + _whose(stage.sources_labels()) for stage in twin.stages]
    if twin.revision is not None and not any(stage.name == "revised" for stage in twin.stages):
        before.append("revisions of its answers were tried and not learned")
    if twin.reinforcement is None:
        judged = any(stage.sources_labels().get("AI") for stage in twin.stages)
        part = "Labels of a judge model are in it" if judged else "No judge model and no constitution had a part in it"
        return f"trained with Charter: {listed(before) or 'nothing was learned'}. {part}."
    aim = "aligned to a written constitution with Charter" if _by_constitution(twin) else "aligned with Charter"
    learned = "; ".join(_reinforced(twin, twin.reinforcement))
    return f"{aim}: {listed(before) + ', then ' if before else ''}{learned}."


def tags(twin: Twin) -> list[str]:
    """Tags of the hub for what was really done."""
    stages = {stage.name for stage in twin.stages}
    found = ["charter"]
    if twin.reinforcement is not None:
        sources = {one.source for one in twin.labels if one.learned and one.share > 0}
        if _by_constitution(twin):
            found.append("constitutional-ai")
        if "AI" in sources or (twin.judge is not None and set(twin.judge.did) - {"revisions"}):
            found.append("rlaif")
        if "HUMAN" in sources:
            found.append("rlhf")
        if twin.reinforcement.done:
            found.append(twin.reinforcement.algorithm.replace("plus_plus", "pp").replace("_", "-"))
    if "supervised" in stages:
        found.append("sft")
    return [*found, *(stage for stage in ("dpo", "kto") if stage in stages)]


def _by_constitution(twin: Twin) -> bool:
    return twin.judge is not None and bool(twin.judge.did)


def _reinforced(twin: Twin, learned: Reinforcement) -> list[str]:
    """Whose labels, what rewards and what algorithm, a part of a sentence each."""
    name = ALGORITHM_TITLES[learned.algorithm]
    if not learned.done:
        return ["no step of reinforcement learning was done"]
    held = f"while {_PULLS[learned.pull]} held it near its start" if learned.pull_coefficient else "with no pull to it"
    if learned.pull == "beta":
        return [
            f"{name} let it learn from pairs of its answers that a judge model compared by the constitution, {held}"
        ]
    kinds = [reward.kind for reward in learned.rewards]
    parts = []
    if "preference_model" in kinds:
        parts.append(f"a preference model was fitted to {_labels(twin)}")
    rewards = listed([_REWARDS[kind] for kind in kinds])
    parts.append(f"{name} trained the policy against {rewards} {held}")
    return parts


def _labels(twin: Twin) -> str:
    """Whose labels the preference model was fitted to, as far as they were counted."""
    sources = [name for name in LABEL_SOURCES if any(one.source == name and one.learned for one in twin.labels)]
    own = twin.judge is not None and "labels" in twin.judge.did
    if not sources and own:
        sources = ["AI"]
    words = {
        "AI": "a judge model's labels" + ", by the constitution, of pairs of its answers" * own,
        "HUMAN": "labels of people",
        "IMPORTED": "labels from files",
    }
    return listed([words[name] for name in sources]) or "labels"


def _whose(labels: dict[str, int]) -> str:
    """Of whom labels are, where there are any."""
    return f", with labels of {listed([LABEL_SOURCES[name] for name in sorted(labels)])}" if labels else ""
