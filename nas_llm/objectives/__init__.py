"""What a search compares: each objective is one number of one sub-network, to be minimised or maximised."""

from nas_llm.objectives.accuracy import Accuracy
from nas_llm.objectives.generated_accuracy import GeneratedAccuracy
from nas_llm.objectives.latency import Latency, Timings
from nas_llm.objectives.loss import Loss, mean_token_loss
from nas_llm.objectives.macs import Macs
from nas_llm.objectives.nonzero_params import NonzeroParams
from nas_llm.objectives.params import Params
from nas_llm.objectives.perplexity import Perplexity
from nas_llm.objectives.protocol import (
    Batch,
    Derived,
    Detailed,
    Details,
    Estimate,
    Objective,
    Sampled,
    directions,
    measure,
)
from nas_llm.objectives.task_accuracy import TaskAccuracy
from nas_llm.objectives.token_accuracy import TokenAccuracy
from nas_llm.objectives.weight_bytes import WeightBytes

__all__ = [
    "Accuracy",
    "Batch",
    "Derived",
    "Detailed",
    "Details",
    "Estimate",
    "GeneratedAccuracy",
    "Latency",
    "Loss",
    "Macs",
    "NonzeroParams",
    "Objective",
    "Params",
    "Perplexity",
    "Sampled",
    "TaskAccuracy",
    "Timings",
    "TokenAccuracy",
    "WeightBytes",
    "directions",
    "mean_token_loss",
    "measure",
]
