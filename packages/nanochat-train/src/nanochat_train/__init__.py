"""Training for nanochat: MuonAdamW, the depth recipe, the training loop, checkpoints, metrics and bits per byte."""

from nanochat_train import schedules
from nanochat_train.groups import param_groups
from nanochat_train.loop import Stage, StepRates, StepReport, TrainingLoop
from nanochat_train.optim import MuonAdamW
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel
from nanochat_train.recipe import Rates, Recipe
from nanochat_train.stages import FineTuning, Pretraining

__all__ = [
    "Batch",
    "BatchLoader",
    "FineTuning",
    "MuonAdamW",
    "Pretraining",
    "Rates",
    "Recipe",
    "Stage",
    "StepRates",
    "StepReport",
    "TrainableModel",
    "TrainingLoop",
    "param_groups",
    "schedules",
]
