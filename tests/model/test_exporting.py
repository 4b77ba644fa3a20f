"""A saved model, exported as docs/exporting.md does, gives the same logits in ONNX Runtime."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharp.posthoc import adjust_head
from tests.conftest import make_vit

PAGE = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text()


def test_the_exported_model_gives_the_same_logits(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    folder = "outputs/photos/logit_adjusted"
    adjust_head(make_vit(num_channels=3), [40, 22, 9, 3], "logit_adjustment", strength=1).save_pretrained(folder)
    (code,) = [block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "torch.onnx.export" in block]
    names: dict[str, object] = {}
    exec(compile(code.replace("224, 224", "8, 8"), "exporting.md", "exec"), names)
    pixels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = names["model"](pixels).logits.numpy()
    session = runtime.InferenceSession("photos.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)
