"""Text that the judge's model writes: one answer to each prompt, with the prompts that do not fit named in place."""

from collections.abc import Sequence

from charter.inference.engine import ContextTooLongError, Engine, GeneratedSample, Prompt, Sampling


async def write_each(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling
) -> list[GeneratedSample | ContextTooLongError]:
    """One sample for each prompt, in their order. A prompt that does not fit gives its error; the rest is written."""
    results: dict[int, GeneratedSample | ContextTooLongError] = {}
    waiting = list(range(len(prompts)))
    while waiting:
        try:
            async for sample in engine.generate([prompts[index] for index in waiting], sampling):
                results[waiting[sample.prompt_index]] = sample
            break
        except ContextTooLongError as error:
            # The engine refuses the whole call before it samples anything, and names one prompt at a time.
            results[waiting.pop(error.index)] = error
    return [results[index] for index in range(len(prompts))]
