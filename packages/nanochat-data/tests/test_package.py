"""The package as a whole: it imports light, its README runs, and it holds on a real corpus."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nanochat_data
import numpy as np
import pytest
from nanochat_data import TokenShards, open_text_source, validation_batches
from nanochat_data.testing import ByteEncoder

PACKAGE = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("NANOCHAT_TEST_DATA") or PACKAGE.parents[2] / "shared" / "data")


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'pyarrow', 'datasets'} & set(sys.modules)"
    program = f"import sys, nanochat_data; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_example_of_the_readme_runs():
    example = re.search(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith("(4, 64) 4\n")


def test_every_public_name_is_there():
    assert all(hasattr(nanochat_data, name) for name in nanochat_data.__all__)


def test_validation_of_a_real_corpus_counts_every_byte_once(tmp_path):
    path = REAL_DATA / "wikitext-2"
    if not path.is_dir():
        pytest.skip("no real data beside the repository")
    source = open_text_source(path, split="val", split_on=r"^ = [^=]")
    counted = 0
    shards = TokenShards(source, ByteEncoder(), tmp_path).build()
    for batch in validation_batches(shards, batch_size=16, sequence_len=512):
        counted += int(np.count_nonzero((batch.targets >= 0) & (batch.targets < 256)))
    assert counted == (path / "valid.txt").stat().st_size
