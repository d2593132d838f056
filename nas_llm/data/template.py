"""The Alpaca prompt, for training and for evaluation alike (Taori et al., Stanford Alpaca, 2023)."""

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def alpaca_prompt(instruction: str, input: str | None = None) -> str:
    """The text before the response; an input of None or "" uses the form without an input."""
    if input:
        return WITH_INPUT.format(instruction=instruction, input=input)
    return WITHOUT_INPUT.format(instruction=instruction)
