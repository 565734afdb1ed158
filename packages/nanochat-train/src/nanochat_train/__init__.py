"""Training for nanochat: MuonAdamW, the depth recipe, one loop for every stage, checkpoints, metrics and evaluations."""

from nanochat_train import schedules, state
from nanochat_train.bpb import BitsPerByte, bits_per_byte
from nanochat_train.chat_eval import (
    CHAT_CORE,
    Answer,
    ChatResult,
    ChoiceScorer,
    Generator,
    chat_core,
    evaluate_chat,
    pass_at_k,
)
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
from nanochat_train.fp8 import check_fp8, use_fp8
from nanochat_train.groups import param_groups
from nanochat_train.loggers import (
    Ema,
    JsonlLogger,
    Logger,
    Loggers,
    PlainLogger,
    ProfileLogger,
    ProgressLogger,
    TensorBoardLogger,
    TrackerLogger,
    console_logger,
    read_metrics,
)
from nanochat_train.optim import MuonAdamW
from nanochat_train.process_group import ProcessGroup
from nanochat_train.progress import StepReport
from nanochat_train.protocols import Batch, BatchLoader, TrainableModel, WeightedBatch
from nanochat_train.recipe import Rates, Recipe
from nanochat_train.rollouts import Group, Rollout, RolloutBatch, RolloutLoader, RolloutStatistics, policy_weights
from nanochat_train.run import Evaluated, Evaluation, Run
from nanochat_train.run_folder import RunFolder
from nanochat_train.schedules import FineTuning, PolicyGradient, Pretraining, Schedule, StepRates
from nanochat_train.sharded import ShardedMuonAdamW
from nanochat_train.trainer import Trainer, rows_that_fit

# fmt: off
__all__ = [
    "CHAT_CORE", "Answer", "Batch", "BatchLoader", "BitsPerByte", "Candidate", "ChatResult", "CheckpointError",
    "ChoiceScorer", "CoreResult", "Ema", "Evaluated", "Evaluation", "EvaluationLog", "FineTuning", "Generator", "Group",
    "JsonlLogger", "LogLikelihood", "Logger", "Loggers", "MuonAdamW", "PlainLogger", "PolicyGradient", "Pretraining",
    "ProcessGroup", "ProfileLogger", "ProgressLogger", "Rates", "Recipe", "Rollout", "RolloutBatch", "RolloutLoader",
    "RolloutStatistics", "Run", "RunFolder", "Schedule", "ShardedMuonAdamW", "StepRates", "StepReport", "TaskResult",
    "TensorBoardLogger", "TrackerLogger", "TrainableModel", "Trainer", "TrainingState", "WeightedBatch", "bits_per_byte",
    "chat_core", "check_fp8", "console_logger", "evaluate_chat", "evaluate_core", "list_steps", "load_meta",
    "load_training_state", "param_groups", "pass_at_k", "policy_weights", "read_metrics", "rows_that_fit",
    "save_checkpoint", "schedules", "state", "step_directory", "use_fp8", "verify_checkpoint",
]
