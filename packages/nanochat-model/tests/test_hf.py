"""Every variant under transformers: logits, losses, masks and caches as ours, files both ways, refusals with reasons."""

import json

import pytest
import torch
from nanochat_model import GPT, GPTConfig, hf, load_model, save_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

SIZES = {"sequence_len": 256, "vocab_size": 131, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
VARIANTS = {
    "modern": GPTConfig(**SIZES),
    "no-smear": GPTConfig(**SIZES, smear=False),
    "classic": GPTConfig.classic(**SIZES),
}


def random_model(config, dtype=torch.float32):
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_ids(*shape):
    return torch.randint(0, 131, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def registered():
    hf.register()


@pytest.fixture
def pair(tmp_path):
    """A modern model, and what transformers reads of its files."""
    model = random_model(VARIANTS["modern"])
    save_model(model, tmp_path / "ours")
    return model, AutoModelForCausalLM.from_pretrained(tmp_path / "ours")


@torch.inference_mode()
def greedy(model, ids, num_tokens):
    for _ in range(num_tokens):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(dim=-1)), dim=1)
    return ids


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_go_out_and_come_back_with_equal_logits(tmp_path, config, dtype):
    model = random_model(config, dtype)
    save_model(model, tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype)
    assert isinstance(theirs, hf.NanochatGPTForCausalLM)
    ids = random_ids(2, 200)
    with torch.inference_mode():
        assert torch.equal(theirs(ids).logits, model(ids))
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert back.config == config
    with torch.inference_mode():
        assert torch.equal(back(ids), model(ids))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert again.dtype == dtype
    assert AutoConfig.from_pretrained(tmp_path / "theirs").num_hidden_layers == 4


def test_generate_is_greedy_decoding_with_any_cache_and_from_one_that_is_filled(pair):
    model, theirs = pair
    ids = random_ids(3, 150)
    expected = greedy(model, ids, 24)
    settings = {"do_sample": False, "max_new_tokens": 24}
    assert torch.equal(theirs.generate(ids, **settings), expected)
    assert torch.equal(theirs.generate(ids, use_cache=False, **settings), expected)
    cache = DynamicCache()
    theirs.generate(ids[:, :120], do_sample=False, max_new_tokens=1, past_key_values=cache)
    assert cache.get_seq_length() == 120
    assert torch.equal(theirs.generate(ids, past_key_values=cache, **settings), expected)
    beams = theirs.generate(ids[:1], num_beams=3, **settings)
    assert torch.equal(theirs.generate(ids[:1], num_beams=3, use_cache=False, **settings), beams)
    assert not torch.equal(beams, expected[:1])


def test_prompts_padded_on_the_left_are_read_as_if_alone(pair):
    model, theirs = pair
    lengths = [150, 7, 90]
    prompts = [random_ids(1, n)[0] for n in lengths]
    ids = torch.stack([torch.cat((torch.full((150 - len(p),), 5), p)) for p in prompts])
    mask = torch.stack([torch.cat((torch.zeros(150 - n), torch.ones(n))) for n in lengths]).long()
    out = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=16)
    with torch.inference_mode():
        logits = theirs(ids, attention_mask=mask).logits
    for row, prompt in enumerate(prompts):
        assert torch.equal(out[row, 150:], greedy(model, prompt[None], 16)[0, -16:])
        with torch.inference_mode():
            torch.testing.assert_close(logits[row, 150 - len(prompt) :], model(prompt[None])[0], atol=1e-4, rtol=0)


def test_the_loss_is_ours_and_padding_on_the_right_is_ignored(pair):
    model, theirs = pair
    ids = random_ids(2, 40)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, 30:], mask[:, 30:] = -100, 0
    out = theirs(ids, attention_mask=mask, labels=labels)
    expected = model.loss(ids[:, :29], ids[:, 1:30])
    torch.testing.assert_close(out.loss, expected)
    assert out.past_key_values is None
    out.loss.backward()
    expected.backward()
    ours = dict(model.named_parameters())
    for name, parameter in theirs.gpt.named_parameters():
        torch.testing.assert_close(parameter.grad, ours[name].grad, atol=1e-5, rtol=1e-3)


def test_logits_of_the_last_positions_only(pair):
    model, theirs = pair
    ids = random_ids(2, 40)
    with torch.inference_mode():
        full = model(ids)
        torch.testing.assert_close(theirs(ids, logits_to_keep=3).logits, full[:, -3:], atol=1e-4, rtol=0)
        kept = theirs(ids, logits_to_keep=torch.tensor([4, 9])).logits
    torch.testing.assert_close(kept, full[:, [4, 9]], atol=1e-4, rtol=0)


def test_a_model_made_there_is_initialised_as_ours_and_comes_in(tmp_path):
    theirs = AutoModelForCausalLM.from_config(hf.NanochatGPTConfig(**SIZES))
    theirs.save_pretrained(tmp_path)
    ours, made = GPT(GPTConfig(**SIZES)), load_model(tmp_path)
    ours.init_weights()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"position_ids": torch.arange(4)[None]}, "takes no position_ids"),
        ({"output_hidden_states": True}, "takes no output_hidden_states"),
        ({"attention_mask": torch.ones(1, 9)}, r"shape \(1, 9\); ids held and given have \(1, 4\)"),
        ({"past_key_values": object()}, "a object; only a DynamicCache"),
    ],
)
def test_what_has_no_place_is_refused(pair, asked, complaint):
    with pytest.raises(ValueError, match=complaint):
        pair[1](random_ids(1, 4), use_cache=True, **asked)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"n_embd": 66}, "n_embd=66 must be divisible"), ({"format_version": 2}, "format_version=2")],
)
def test_settings_that_are_wrong_are_refused(tmp_path, change, complaint):
    save_model(random_model(VARIANTS["modern"]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=complaint):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    save_model(random_model(GPTConfig(**SIZES, backout=False)), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backout": True}))
    with pytest.raises(ValueError, match="lack the tensor backout_lambda"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
