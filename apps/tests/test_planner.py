"""The planner's sizes: more rows need more memory, the choice fits and divides the batch, and a run uses it."""

import pytest
import torch
from nanochat_apps import planner
from nanochat_model import GPT, GPTConfig

CPU = torch.device("cpu")


def small_model(n_layer=3, sequence_len=128) -> GPT:
    return GPT(
        GPTConfig(
            sequence_len=sequence_len,
            vocab_size=320,
            n_layer=n_layer,
            n_head=2,
            n_kv_head=2,
            n_embd=64,
            window_pattern="L",
        )
    )


def make_plan(model, **changes):
    settings = {"total_batch_size": 128 * 24, "num_iterations": 10, "num_ranks": 1, "device": CPU}
    return planner.plan(model, **settings | changes)


def kept_by_autograd(model: GPT, rows: int) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros((rows, model.config.sequence_len), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(ids, ids)
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("layers", [2, 6])
def test_activations_are_extended_rightly_from_small_parts(layers):
    model = small_model(layers)
    model.init_weights(0)
    constant, per_row = planner.activation_bytes(model.config, torch.float32, CPU)
    predicted = (constant + 5 * per_row) / planner.WORKSPACE
    assert predicted == pytest.approx(kept_by_autograd(model, 5), rel=0.1)


def test_the_largest_batch_that_fits_and_divides_is_chosen(monkeypatch):
    model = small_model()
    roomy = make_plan(model)
    assert (roomy.rows, roomy.micro_batches) == (24, 1)
    _, per_row = planner.activation_bytes(model.config, torch.float32, CPU)
    beside = roomy.total - roomy.activations
    monkeypatch.setattr(planner, "free_memory", lambda device: int((beside + 9.9 * per_row) / planner.USABLE_SHARE))
    tight = make_plan(model)
    assert (tight.rows, tight.micro_batches) == (8, 3)
    assert tight.total < tight.available
    monkeypatch.setattr(planner, "free_memory", lambda device: 0)
    assert make_plan(model).rows == 1
    assert make_plan(model, rows=12).micro_batches == 2
    assert make_plan(model, num_ranks=4, rows=None).micro_batches == 6


def test_time_grows_with_the_steps(monkeypatch):
    monkeypatch.setattr(planner.devices, "matmul_peak", lambda device, dtype: 1e12)
    model = small_model()
    short, long = make_plan(model), make_plan(model, num_iterations=30)
    assert long.seconds == pytest.approx(3 * short.seconds)
    assert short.seconds == pytest.approx(10 * 128 * 24 * model.flops_per_token() / (planner.USUAL_MFU * 1e12))
    assert [row[0] for row in short.table()] == [
        "micro-batch",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "memory",
        "time",
    ]
