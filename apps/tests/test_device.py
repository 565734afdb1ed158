"""The settings that a process must start with: programs of ours get them by a restart, whoever calls our code does not."""

import os
import subprocess
import sys

import pytest
import torch
from nanochat_apps import nanochat
from nanochat_apps.runtime import device, process
from nanochat_apps.runtime.cli import UsageError

UNTUNED = {name: value for name, value in os.environ.items() if name not in process.TUNING}
PROGRAM = """
import os, sys
from nanochat_apps.runtime import process

def main():
    process.tune_process()
    print(*(os.environ.get(name) for name in process.TUNING), *sys.argv[1:])

main()
"""
SCRIPT = """
import os, sys
from nanochat_apps.runtime import process

process.tune_process()
print(*(os.environ.get(name) for name in process.TUNING), *sys.argv[1:])
"""


@pytest.mark.skipif(process.tuned_environment() == dict(UNTUNED), reason="no glibc here")
@pytest.mark.parametrize("program", [PROGRAM, SCRIPT], ids=["main", "script"])
@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}], ids=["none set", "one set"])
def test_a_program_starts_again_with_the_settings(tmp_path, program, own):
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), "--flag", "a b"]
    done = subprocess.run(command, env=UNTUNED | own, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == [*(process.TUNING | own).values(), "--flag", "a", "b"]


def test_a_program_that_calls_ours_goes_on(monkeypatch, capsys):
    """pytest was once replaced by itself in the middle of a run, with its output lost."""

    def restarted(*_: object) -> None:
        raise AssertionError("restarted")

    monkeypatch.setattr(os, "execve", restarted)
    monkeypatch.setattr(os, "environ", UNTUNED)
    monkeypatch.setattr(sys, "argv", ["chat-cli", "--help"])
    with pytest.raises(SystemExit) as ended:
        nanochat.main()
    assert ended.value.code == 0
    assert "chat-cli" in capsys.readouterr().out


def test_decoding_takes_the_faster_dtype_unless_it_is_told_or_bfloat16_is_slow(monkeypatch):
    cpu, measured, costs = torch.device("cpu"), [], {torch.float32: 1.0}

    def cost(dtype: torch.dtype) -> float:
        measured.append(dtype)
        return costs[dtype]

    monkeypatch.setattr(device, "decode_cost", cost)
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    for fast, bf16_cost, expected in (
        (True, 0.5, torch.bfloat16),
        (True, 2.0, torch.float32),
        (False, 0.5, torch.float32),
    ):
        costs[torch.bfloat16] = bf16_cost
        device._faster_dtype.cache_clear()
        measured.clear()
        monkeypatch.setattr(device, "has_fast_bf16", lambda _, fast=fast: fast)
        assert device.choose_decode_dtype(cpu) == device.choose_decode_dtype(cpu) == expected
        assert len(measured) == (2 if fast else 0), "measured once in a process"
        assert device.choose_decode_dtype(cpu, "bfloat16") == torch.bfloat16
        monkeypatch.setenv("NANOCHAT_DTYPE", "float16")
        assert device.choose_decode_dtype(cpu) == torch.float16
        monkeypatch.delenv("NANOCHAT_DTYPE")
    device._faster_dtype.cache_clear()


def test_the_cost_of_decoding_is_measured():
    assert all(device.decode_cost(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))


def test_the_default_dtype_can_be_set(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    assert device.choose_dtype(cpu) == (torch.bfloat16 if device.has_fast_bf16(cpu) else torch.float32)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        monkeypatch.setenv("NANOCHAT_DTYPE", name)
        assert (device.choose_dtype(cpu), device.choose_dtype(cpu, "float16")) == (dtype, torch.float16)
    monkeypatch.setenv("NANOCHAT_DTYPE", "bf16")
    with pytest.raises(UsageError, match="NANOCHAT_DTYPE=bf16: unknown dtype; choose from float32, bfloat16, float16"):
        device.choose_dtype(cpu)
