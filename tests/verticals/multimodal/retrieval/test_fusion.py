"""Fusion: shapes, a missing side, and that words do look at places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verticals.multimodal.retrieval.fusion import ConcatFusion, CrossAttentionFusion


def test_concat_is_one_linear_layer_of_both() -> None:
    fusion = ConcatFusion(5, 3, 4)
    picture, text = torch.randn(2, 5), torch.randn(2, 3)
    expected = torch.cat([picture, text], 1) @ fusion.linear.weight.T + fusion.linear.bias
    assert torch.allclose(fusion(picture, text), expected, atol=1e-6)
    with torch.no_grad():
        fusion.no_text.copy_(text[0])
        assert torch.allclose(fusion(picture[:1], None), expected[:1], atol=1e-6)
    assert fusion(None, text).shape == (2, 4)


def test_cross_attention_sees_no_padding_and_no_order_of_places() -> None:
    fusion = CrossAttentionFusion(6, 8, 12, num_layers=2).eval()
    places, words = torch.randn(3, 7, 6), torch.randn(3, 5, 8)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = False
    whole = fusion(places, words, mask)
    assert whole.shape == (3, 12)
    assert torch.allclose(fusion(places[:1], words[:1, :3]), whole[:1], atol=1e-5)
    assert torch.allclose(fusion(places[:, torch.randperm(7)], words, mask), whole, atol=1e-5)
    assert not torch.allclose(fusion(places.flip(0), words, mask), whole, atol=1e-2)


@pytest.mark.parametrize("fusion", [ConcatFusion(6, 8, 12), CrossAttentionFusion(6, 8, 12)])
def test_one_side_may_be_missing_and_both_may_not(fusion: nn.Module) -> None:
    shape = (2, 3) if isinstance(fusion, CrossAttentionFusion) else (2,)
    assert fusion.eval()(torch.randn(*shape, 6), None).shape == (2, 12)
    assert fusion(None, torch.randn(*shape, 8)).shape == (2, 12)
    with pytest.raises(ValueError, match="neither a picture nor a text"):
        fusion(None, None)


def test_what_stands_in_for_a_missing_side_is_learned() -> None:
    fusion = CrossAttentionFusion(6, 8, 12)
    fusion(torch.randn(2, 4, 6), None).sum().backward()
    assert fusion.no_text.grad is not None
    assert fusion.no_text.grad.abs().sum() > 0


def test_cross_attention_learns_whether_a_word_is_at_some_place() -> None:
    """The word names one of 6 things; the picture has 5 places with a thing each."""
    torch.manual_seed(0)
    fusion, top = CrossAttentionFusion(6, 6, 24, dropout=0.0), nn.Linear(24, 1)
    optimizer = torch.optim.Adam([*fusion.parameters(), *top.parameters()], lr=5e-3)
    right = 0.0
    for step in range(400):
        things = torch.randint(0, 6, (128, 5))
        asked = torch.randint(0, 6, (128,))
        truth = (things == asked[:, None]).any(1).float()
        places, words = nn.functional.one_hot(things, 6).float(), nn.functional.one_hot(asked, 6).float()[:, None]
        logits = top(fusion(places, words))[:, 0]
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= 380:
            right += float(((logits > 0) == (truth > 0.5)).float().mean()) / 20
    assert right > 0.95
