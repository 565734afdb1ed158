"""Rollouts against the formulas by hand: weights, masks, ranks, resuming, and a policy that learns what pays."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from nanochat_train import (
    MuonAdamW,
    PolicyGradient,
    ProcessGroup,
    Rollout,
    RolloutLoader,
    Trainer,
    policy_weights,
)
from nanochat_train.testing import BigramModel

PROMPT = [1, 2]


def rollout(answer, reward, mask=None, **more):
    mask = [1] * len(answer) if mask is None else mask
    return Rollout(token_ids=[*PROMPT, *answer], mask=[0, 0, *mask], reward=reward, **more)


GROUP = [
    rollout([3, 4, 5], 1.0),
    rollout([6], 0.0),
    rollout([7, 8, 9, 10], 0.0, [1, 0, 0, 1]),
    rollout([3, 5], 1.0, truncated=True),
]


def make_loader(
    collect, *, num_examples=6, examples_per_step=2, rows_per_batch=2, ranks=None, num_samples=4, seed=0, **more
):
    return RolloutLoader(
        collect,
        num_examples=num_examples,
        examples_per_step=examples_per_step,
        num_samples=num_samples,
        rows_per_batch=rows_per_batch,
        pad_id=0,
        seed=seed,
        identity={"task": "a"},
        ranks=ranks,
        **more,
    )


def make_trainer(model, loader, num_iterations, *, lr=0.05, lr_scale=1.0):
    groups = [
        {"params": params, "kind": "adamw", "lr": lr, "initial_lr": lr, "initial_weight_decay": 0.0}
        for params in model.param_roles().values()
    ]
    return Trainer(
        model,
        MuonAdamW(groups),
        loader,
        PolicyGradient(num_iterations=num_iterations, lr_scale=lr_scale),
        device=torch.device("cpu"),
        grad_accum_steps=loader.batches_per_step,
    )


def test_the_gradient_is_that_of_the_policy_gradient_written_out():
    model, oracle = BigramModel(), BigramModel()
    loader = make_loader(lambda indices, seeds: [GROUP, GROUP[::-1]])
    trainer = make_trainer(model, loader, 1)
    trainer.fit(lambda report: None)
    objective = torch.zeros(())
    for group in (GROUP, GROUP[::-1]):
        for part in (group[:2], group[2:]):
            num_valid = sum(sum(r.mask) for r in part)
            for r in part:
                logits = oracle.table[torch.tensor(r.token_ids[:-1])] @ oracle.matrix.T
                logp = logits.log_softmax(-1)[range(len(r.token_ids) - 1), r.token_ids[1:]]
                advantage = r.reward - sum(other.reward for other in group) / len(group)
                objective = objective + (logp * torch.tensor(r.mask[1:])).sum() * advantage / (num_valid * 2 * 2)
    (-objective).backward()
    torch.testing.assert_close(model.table.grad, oracle.table.grad)
    torch.testing.assert_close(model.matrix.grad, oracle.matrix.grad)


def test_prompts_tool_tokens_and_padding_are_never_supervised():
    batches = list(itertools.islice(make_loader(lambda indices, seeds: [GROUP, GROUP]), 2))
    assert batches[0].targets.tolist() == [[-1, 3, 4, 5], [-1, 6, -1, -1]]
    assert batches[1].targets.tolist() == [[-1, 7, -1, -1, 10], [-1, 3, 5, -1, -1]]
    assert batches[1].inputs.tolist() == [[1, 2, 7, 8, 9], [1, 2, 3, 0, 0]]


def test_groups_with_equal_rewards_teach_nothing_and_cost_nothing():
    equal = [rollout([3, 4, 5, 6], 1.0)] * 4
    loader = make_loader(lambda indices, seeds: [equal, equal])
    model = BigramModel()
    before = [p.detach().clone() for params in model.param_roles().values() for p in params]
    make_trainer(model, loader, 1).fit(lambda report: None)
    after = [p for params in model.param_roles().values() for p in params]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    shares = {"truncated": 0.0, "nonzero_groups": 0.0, "resampled_groups": 0.0}
    assert loader.statistics.means() == {"reward": 1.0, "length": 4.0, **shares}


def test_groups_that_tie_are_sampled_again_and_entropy_is_of_all_that_was_sampled():
    """The first two attempts tie everywhere; the third has a winner, for the first prompt of a step only."""
    asked = []

    def collect(indices, seeds):
        asked.append((list(indices), list(seeds)))
        attempt = (len(asked) - 1) % 3
        winners = [attempt == 2 and place == 0 for place in range(len(indices))]
        return [
            [rollout([3, 4], float(winner and k == 0), logprobs=[-1.0, -2.0]) for k in range(4)] for winner in winners
        ]

    loader = make_loader(collect, max_resamples=2)
    batches = list(itertools.islice(loader, loader.batches_per_step))
    assert [len(indices) for indices, _ in asked] == [2, 2, 2]
    assert len({seed for _, seeds in asked for seed in seeds}) == 6, "another seed each time"
    assert [bool((batch.targets != -1).any()) for batch in batches] == [True, True, False, False]
    means = loader.statistics.means()
    assert (means["reward"], means["nonzero_groups"], means["resampled_groups"]) == (0.0, 0.0, 2.0)
    assert means["entropy"] == 1.5
    whole = list(asked)
    asked.clear()
    make = make_loader(collect, max_resamples=2, ranks=ProcessGroup(1, 2))
    next(make)
    assert [(indices, seeds) for indices, seeds in asked] == [(i[1:], s[1:]) for i, s in whole], "ranks change nothing"


def surrogate(logp, batch, advantages, reference, clip_ratio, kl_coef):
    """PPO's clipped objective and the KL's estimate, written out for autograd."""
    ratio = (logp - torch.from_numpy(batch.logprobs)).exp()
    clipped = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages)
    stray = reference - logp
    kl = stray.exp() - stray - 1
    sampled = torch.from_numpy(batch.targets) != -1
    return ((kl_coef * kl - clipped) * sampled).sum() * batch.token_share


@pytest.mark.parametrize(("clip_ratio", "kl_coef"), [(0.2, 0.0), (0.2, 0.3), (1e9, 0.3)])
def test_weights_give_the_gradient_of_the_clipped_objective_and_of_the_kl(clip_ratio, kl_coef):
    generator = torch.Generator().manual_seed(0)
    scored = [replace(r, logprobs=(-2 * torch.rand(r.num_sampled, generator=generator)).tolist()) for r in GROUP]
    batch = next(make_loader(lambda indices, seeds: [scored] * len(indices), rows_per_batch=4))
    advantages = torch.from_numpy(batch.weights) / batch.token_share
    logp, reference = (-2 * torch.rand(batch.targets.shape, generator=generator) for _ in range(2))
    logp.requires_grad_()
    surrogate(logp, batch, advantages, reference, clip_ratio, kl_coef).backward()
    weights = policy_weights(
        batch, logp.detach().numpy(), clip_ratio=clip_ratio, reference=reference.numpy(), kl_coef=kl_coef
    )
    torch.testing.assert_close(torch.from_numpy(weights), -logp.grad)
    if kl_coef == 0.0:
        assert (weights == 0).sum() > (batch.targets == -1).sum(), "some are clipped"


def test_a_loader_trains_by_the_weights_it_is_told():
    loader = make_loader(lambda indices, seeds: [GROUP] * len(indices), adjust=lambda batch: batch.weights * 2)
    plain = make_loader(lambda indices, seeds: [GROUP] * len(indices))
    assert np.array_equal(next(loader).weights, 2 * next(plain).weights)


def test_statistics_are_means_over_rollouts():
    loader = make_loader(lambda indices, seeds: [GROUP, [rollout([3], 0.0)] * 4])
    next(loader)
    shares = {"truncated": 0.125, "nonzero_groups": 0.5, "resampled_groups": 0.0}
    assert loader.statistics.means() == {"reward": 0.25, "length": 1.5, **shares}


def test_ranks_share_a_step_out_and_together_sample_what_one_process_samples():
    def asked(ranks):
        calls = []

        def collect(indices, seeds):
            calls.append(list(zip(indices, seeds, strict=True)))
            return [GROUP] * len(indices)

        loader = make_loader(collect, examples_per_step=4, ranks=ranks)
        for _ in range(3 * loader.batches_per_step):
            next(loader)
        return calls

    whole = asked(ProcessGroup())
    halves = [asked(ProcessGroup(rank, 2)) for rank in range(2)]
    for step, calls in enumerate(whole):
        assert calls[::2] == halves[0][step]
        assert calls[1::2] == halves[1][step]


def test_every_example_comes_once_an_epoch_in_another_order():
    loader = make_loader(lambda indices, seeds: [], num_examples=6, examples_per_step=2)
    epochs = [[index for step in range(3 * e, 3 * e + 3) for index in loader.examples(step)] for e in range(3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_resumed_loader_goes_on_with_the_same_rollouts():
    def collect(indices, seeds):
        return [
            [rollout([index, seed % 11], float(k % 2)) for k in range(4)]
            for index, seed in zip(indices, seeds, strict=True)
        ]

    loader = make_loader(collect)
    for _ in range(3 * loader.batches_per_step):
        next(loader)
    resumed = make_loader(collect)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    for _ in range(2 * loader.batches_per_step):
        assert np.array_equal(next(loader).inputs, next(resumed).inputs)


def test_a_position_of_another_run_is_refused_by_name():
    loader = make_loader(lambda indices, seeds: [])
    with pytest.raises(ValueError, match="seed 1, now 0"):
        loader.load_state_dict(make_loader(lambda indices, seeds: [], seed=1).state_dict())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"examples_per_step": 7}, "examples_per_step=7"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"rows_per_batch": 0}, "rows_per_batch=0"),
        ({"examples_per_step": 3, "ranks": ProcessGroup(0, 2)}, "no multiple of the 2 ranks"),
    ],
)
def test_bad_sizes_are_named(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_loader(lambda indices, seeds: [], **changes)


def test_a_policy_learns_what_pays():
    """One-token answers; only token 10 is paid."""
    model = BigramModel()

    def collect(indices, seeds):
        groups = []
        for seed in seeds:
            probs = (model.table[2] @ model.matrix.T).softmax(-1).detach()
            drawn = torch.multinomial(probs, 8, replacement=True, generator=torch.Generator().manual_seed(seed))
            groups.append([rollout([token], float(token == 10)) for token in drawn.tolist()])
        return groups

    loader = make_loader(collect, num_samples=8, examples_per_step=4)
    rewards = []
    make_trainer(model, loader, 60).fit(lambda report: rewards.append(loader.statistics.means()["reward"]))
    assert rewards[0] < 0.5
    assert np.mean(rewards[-5:]) > 0.9
