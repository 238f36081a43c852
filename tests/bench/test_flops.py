import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from quadtree_attention import QuadtreeAttention
from quadtree_attention.bench.flops import multiply_accumulates


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1))
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.linear(F.scaled_dot_product_attention(x, x, x))


def test_convolutions_products_and_attention():
    model = Net()
    found = multiply_accumulates(model, torch.randn(2, 3, 10, 12))
    conv, linear, attention = 2 * 30 * 8 * 27, 2 * 30 * 8 * 5, 2 * 2 * 30 * 30 * 8
    assert found[""] == conv + linear + attention
    assert (found["conv"], found["linear"]) == (conv, linear)
    assert model.conv.weight.device.type == "cpu"
    assert hasattr(model.conv, "parametrizations")
    assert multiply_accumulates(model, torch.randn(2, 3, 10, 12)) == found


def test_quadtree_attention_looks_at_four_children_of_each_kept_key():
    dim, heads = 16, 2
    layer = QuadtreeAttention(dim, heads, levels=3, topk=(6, 3))
    found = multiply_accumulates(layer, torch.randn(1, 16, 24, dim))[""]
    pairs = (4 * 6) ** 2 + (8 * 12) * 4 * 6 + (16 * 24) * 4 * 3
    projections = 4 * (16 * 24) * dim * dim
    assert found == projections + 2 * pairs * dim
