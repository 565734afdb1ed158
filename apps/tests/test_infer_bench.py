"""infer-bench measures a tiny model end to end, compares bits per byte, and refuses what it cannot measure."""

import json
from pathlib import Path

import pytest
from nanochat_apps.infer_bench import program as infer_bench
from nanochat_apps.testing import save_tiny_checkpoint

SMALL = {"prompt_tokens": 8, "max_tokens": 6, "prefill_tokens": 32, "device_type": "cpu", "dtype": "float32"}


def report(capsys: pytest.CaptureFixture[str], **settings: object) -> dict[str, object]:
    assert infer_bench.bench(infer_bench.Settings(**SMALL | settings)) == 0  # type: ignore[arg-type]
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    said = report(capsys, depth=1, head_dim=32, vocab_size=300, max_seq_len=64, batch_sizes=(1, 3))
    weights = (
        64 * 4 * 64 + 2 * 64 * 4 * 64 + 2 * 64 + 320 * 64 + 24
    )  # attention, MLP, value gate, padded unembedding, smear gate
    assert said["weight_mib"] == pytest.approx(4 * weights / 2**20, rel=1e-3)
    for batch, size in zip(said["batches"], (1, 3), strict=True):  # type: ignore[call-overload]
        assert batch["batch_size"] == size
        assert batch["tok_per_s"] == pytest.approx(1e3 * size / batch["p50_ms"], rel=1e-2)
        assert batch["p99_ms"] >= batch["p50_ms"] > 0
        assert batch["kv_mib"] == pytest.approx(size * 14 * 2 * 64 * 4 / 2**20, rel=1e-3)
    assert said["matmul_gflops"] > 0 < said["stream_gb_per_s"]  # type: ignore[operator]


def test_a_trained_model_and_what_int8_costs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save_tiny_checkpoint(tmp_path / "base_checkpoints" / "d2")
    text = tmp_path / "texts"
    text.mkdir()
    for name in ("train.txt", "val.txt"):
        (text / name).write_text("the cat sat on the mat and looked at the moon. " * 200, encoding="utf-8")
    said = report(capsys, source="base", quantize="int8", data=text, batch_sizes=(2,))
    bpb = said["bpb"]
    assert isinstance(bpb, dict)
    assert bpb["full"] == pytest.approx(8.05, abs=0.3), "random bytes of 265 are worth 8 bits"
    assert abs(bpb["cost"]) < 0.05
    assert bpb["cost"] == pytest.approx(bpb["quantized"] - bpb["full"], abs=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "--depth 0 must be at least 1"),
        ({"batch_sizes": (4, 0)}, "--batch-sizes 4 0"),
        ({"data": Path("texts")}, "give --source and --quantize"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer_bench.Settings(**settings)  # type: ignore[arg-type]


def test_answers_too_short_for_a_full_batch_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--max-tokens 2: the first of 3 answers ended before the last prompt of 200"):
        report(capsys, depth=1, head_dim=32, vocab_size=300, batch_sizes=(3,), prompt_tokens=200, max_tokens=2)


def test_a_context_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="129 tokens are more than the 64"):
        infer_bench.bench(
            infer_bench.Settings(depth=1, max_seq_len=64, prefill_tokens=128, max_tokens=1, prompt_tokens=1)
        )
