"""Training for nanochat: MuonAdamW, the depth recipe, the training loop, rollouts, checkpoints, metrics and evaluations."""

from nanochat_train import schedules, state
from nanochat_train.bpb import BitsPerByte, bits_per_byte
from nanochat_train.chat_eval import CHAT_CORE, Answer, ChatResult, Chooser, Writer, chat_core, evaluate_chat, pass_at_k
from nanochat_train.checkpoints import (
    CheckpointError,
    TrainingState,
    list_steps,
    load_meta,
    load_training_state,
    save_checkpoint,
    step_directory,
    verify_checkpoint,
)
from nanochat_train.core import Candidate, CoreResult, LogLikelihood, TaskResult, evaluate_core
from nanochat_train.evaluation_log import EvaluationLog
from nanochat_train.groups import param_groups
from nanochat_train.loop import Stage, StepRates, StepReport, TrainingLoop
from nanochat_train.loss_scale import LossScale
from nanochat_train.metrics import (
    Ema,
    JsonlSink,
    MetricSink,
    PlainSink,
    ProgressSink,
    Sinks,
    TensorBoardSink,
    WandbSink,
    console_sink,
    read_metrics,
)
from nanochat_train.optim import MuonAdamW
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel, WeightedBatch
from nanochat_train.recipe import Rates, Recipe
from nanochat_train.rollouts import Group, Rollout, RolloutLoader, RolloutStatistics
from nanochat_train.sharded import ShardedMuonAdamW
from nanochat_train.stages import FineTuning, PolicyGradient, Pretraining
from nanochat_train.world import World

__all__ = [
    "CHAT_CORE",
    "Answer",
    "Batch",
    "BatchLoader",
    "BitsPerByte",
    "Candidate",
    "ChatResult",
    "CheckpointError",
    "Chooser",
    "CoreResult",
    "Ema",
    "EvaluationLog",
    "FineTuning",
    "Group",
    "JsonlSink",
    "LogLikelihood",
    "LossScale",
    "MetricSink",
    "MuonAdamW",
    "PlainSink",
    "PolicyGradient",
    "Pretraining",
    "ProgressSink",
    "Rates",
    "Recipe",
    "Rollout",
    "RolloutLoader",
    "RolloutStatistics",
    "ShardedMuonAdamW",
    "Sinks",
    "Stage",
    "StepRates",
    "StepReport",
    "TaskResult",
    "TensorBoardSink",
    "TrainableModel",
    "TrainingLoop",
    "TrainingState",
    "WandbSink",
    "WeightedBatch",
    "World",
    "Writer",
    "bits_per_byte",
    "chat_core",
    "console_sink",
    "evaluate_chat",
    "evaluate_core",
    "list_steps",
    "load_meta",
    "load_training_state",
    "param_groups",
    "pass_at_k",
    "read_metrics",
    "save_checkpoint",
    "schedules",
    "state",
    "step_directory",
    "verify_checkpoint",
]
