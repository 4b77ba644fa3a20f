"""The study that benchmarks/protocol.md describes: its rows, its plan, its runs and its tables.

rows        what is compared, and the settings each row may choose among
runs        one training run and the name of its file
figures     the metrics of a run and paired differences between rows
plan        the protocol as code: which runs come next
data        the examples of a task, in memory
training    train and evaluate one run
driver      work through the plan with several processes; resumable
results     collect finished runs for benchmarks/results/evidence_TASK.json
report      the Markdown table and the picture of a task
claims      the comparisons that the protocol judges, over all tasks
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE, BACKBONES, OUTPUTS = ROOT / "data/evidence", ROOT / "data/backbones", ROOT / "outputs/evidence"
RESULTS = ROOT / "benchmarks/results"
PICTURES = ROOT / "docs/pictures"


def use_one_thread() -> None:
    """Let this process and those that it starts use one thread each and no network, and say little."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error"}
