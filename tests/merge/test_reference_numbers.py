"""Numbers computed once by sd-mecha 1.1.8 (torch 2.13, CPU), for where it is not installed; see test_agreement.py."""

import pytest
import torch

from extensions_lib.merge import differences, methods

A = torch.tensor([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]])
B = torch.tensor([[1.0, -0.5, 1.25], [-0.5, 2.0, 0.5]])
C = torch.tensor([[0.25, 0.75, -1.5], [1.0, -0.25, 1.75]])

# Its names and arguments: weighted_sum(A, B, 0.3), add_difference(A, B - C, 0.7), the same with
# train_difference_mask(A, B, C, 0.8), slerp(A, B, 0.3), add_cosine_b(A, B, 0.1), ties_sum(A, B, C, k=2.5 / 6,
# vote_sgn=True), which keeps four of six, and model_stock(A, A + B / 4).
EXPECTED = {
    "weighted_sum": [[0.65, -1.025, 1.775], [0.9, 0.775, -0.375]],
    "add_difference": [[1.025, -2.125, 3.925], [0.45, 1.825, -1.625]],
    "train_difference": [[0.932, -1.925, 2.848572], [0.265714, 1.6675, -1.65]],
    "slerp": [[0.787502, -1.170127, 2.051894], [0.964906, 0.992722, -0.382625]],
    "cosine_b": [[0.991257, -0.72668, 1.593256], [-0.465029, 1.471081, -0.072093]],
    "ties": [[1.0, -0.875, 1.625], [1.25, 2.0, 1.125]],
    "model_stock": [[0.624308, -1.311046, 2.153862], [1.401271, 0.487399, -0.670173]],
}
OURS = {
    "weighted_sum": lambda: methods.weighted_sum((A, B), (0.3,)),
    "add_difference": lambda: methods.add_difference(A, B, C, 0.7),
    "train_difference": lambda: methods.train_difference(A, B, C, 0.8),
    "slerp": lambda: methods.slerp(A, B, 0.3),
    "cosine_b": lambda: methods.cosine_merge(A, B, methods.cosine_similarities_b(A, B), 0.1, (0.0, 1.0)),
    "ties": lambda: differences.ties((A, B, C), (1.0, 1.0, 1.0), 4 / 6),
    "model_stock": lambda: differences.model_stock((A, A + B / 4)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_numbers_of_an_independent_implementation(name):
    torch.testing.assert_close(OURS[name](), torch.tensor(EXPECTED[name]), rtol=0, atol=1e-6)
