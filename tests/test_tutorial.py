"""The tutorial: every cell runs, and what is committed is the outcome of a run without errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def as_python(source):
    """Lines with an exclamation mark are commands of the shell."""
    lines = [f"_shell({line[1:]!r})" if line.startswith("!") else line for line in source]
    return "\n".join(line.rstrip("\n") for line in lines)


def test_the_committed_tutorial_was_run_without_errors():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "Traceback" not in text
    assert "site-packages" not in text, "no path of the machine it ran on"
    assert any("image/png" in output.get("data", {}) for output in outputs), "the picture is shown"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_cell_of_the_tutorial_runs(tmp_path):
    cells = "\n\n".join(as_python(cell["source"]) for cell in CODE)
    (tmp_path / "tutorial.py").write_text(
        "import subprocess\n\n\ndef _shell(command):\n    print(command)\n    subprocess.run(command, shell=True)\n\n\n"
        + cells
    )
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "tutorial.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "outputs" / "photos" / "recall_by_count.png").is_file()
    assert (tmp_path / "compared").is_dir()
