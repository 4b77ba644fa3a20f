"""The features that a head receives, where it computes logits for every token."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from hf_sharp.model.head import ClassifierHead


def make_llama():
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**shape, vocab_size=20, num_labels=3, pad_token_id=0))


def make_gpt2():
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    return GPT2ForSequenceClassification(GPT2Config(**shape, vocab_size=20, num_labels=3, pad_token_id=0))


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_features_of_a_decoder_are_those_of_the_token_that_its_logits_come_from(make, side):
    torch.manual_seed(0)
    model = make()
    tokens = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0], [9, 0, 0, 0, 0]])
    last = [4, 2, 0]
    if side == "left":
        tokens = torch.stack([row.roll(4 - place) for row, place in zip(tokens, last, strict=True)])
        last = [4, 4, 4]
    received = []
    model.score.register_forward_hook(lambda head, inputs, output: received.append(inputs[0]))
    with ClassifierHead(model, num_classes=3) as head:
        logits = model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
        features = head.features_of(logits)
        assert head.module is model.score
    assert torch.equal(features, received[0][torch.arange(3), last])
    (gradient,) = torch.autograd.grad(features.sum(), received)
    assert gradient.flatten(1).ne(0).any(1).all(), "the features are part of the graph"
    assert gradient[0, :4].eq(0).all()


def test_padding_with_the_same_logits_is_left_out():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(2, 3)

        def forward(self, states, attention_mask=None):
            return self.score(states)[:, 1]

    model = Decoder()
    nn.init.zeros_(model.score.weight)  # all tokens have the same logits, as can happen in low precision
    states = torch.arange(8.0).view(1, 4, 2)
    with ClassifierHead(model, num_classes=3) as head:
        logits = model(states, attention_mask=torch.tensor([[1, 1, 0, 0]]))
        assert head.features_of(logits).tolist() == [[2.0, 3.0]]


def test_a_mean_over_tokens_has_no_features():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(2, 3)

        def forward(self, states):
            return self.score(states).mean(1)

    model = Mean()
    with (
        ClassifierHead(model, num_classes=3) as head,
        pytest.raises(ValueError, match=r"not the output of a linear layer of \(N, d\) features; looked at 'score'"),
    ):
        head.features_of(model(torch.randn(2, 4, 2)))
