"""New rows under a frozen token table: only the V x D new vectors are parameters.

Ids from `num_vocabulary` on select the new rows; the table itself, its size and the tokenizer stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class ExtendedEmbedding(nn.Module):
    """A token table (N, D) followed by trainable float32 rows (V, D)."""

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.detach().clone().to(torch.float32))

    @property
    def weight(self) -> Tensor:
        """The frozen table, for code that asks an embedding for its dtype or device."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Rows for `ids` (..., T) as (..., T, D) in the table's dtype."""
        num_vocabulary = self.table.num_embeddings
        known = functional.embedding(ids.clamp(max=num_vocabulary - 1), self.table.weight)
        is_new = ids >= num_vocabulary
        if not is_new.any():
            return known
        new = functional.embedding((ids - num_vocabulary).clamp(min=0), self.rows).to(known.dtype)
        return torch.where(is_new.unsqueeze(-1), new, known)


@contextmanager
def extended(embeddings: nn.Module, rows: Tensor) -> Iterator[ExtendedEmbedding]:
    """Within the context `embeddings.token_embedding` knows the new rows; afterwards it is the same object again."""
    table = embeddings.token_embedding
    extension = ExtendedEmbedding(table, rows).to(table.weight.device)
    embeddings.token_embedding = extension
    try:
        yield extension
    finally:
        embeddings.token_embedding = table


@contextmanager
def looked_up(token_embedding: nn.Module, rows: Tensor, first: int) -> Iterator[None]:
    """Within the context the ids `first`, `first` + 1, ... stand for `rows` (V, D), which are not trained.

    It acts through hooks, so that names and values of the model stay; other ids go to `token_embedding` as before.
    """
    asked: list[Tensor] = []

    def before(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        ids = arguments[0]
        asked.append(ids)
        return (ids.masked_fill((ids >= first) & (ids < first + len(rows)), 0),)

    def after(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        places = asked.pop() - first
        found = functional.embedding(places.clamp(0, len(rows) - 1), rows.to(output.device, output.dtype))
        return torch.where(((places >= 0) & (places < len(rows))).unsqueeze(-1), found, output)

    hooks = (token_embedding.register_forward_pre_hook(before), token_embedding.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def initial_rows(table: Tensor, ids: Sequence[int], num_vectors: int) -> Tensor:
    """(V, D) start vectors: row i is that of token floor(i * L / V) of the L given `ids`; zeros when there are none.

    The same rule as the WebUI's own trainer, so that recipes transfer.
    """
    if not ids:
        return torch.zeros(num_vectors, table.shape[1], device=table.device)
    picked = [ids[index * len(ids) // num_vectors] for index in range(num_vectors)]
    return table[torch.tensor(picked, device=table.device)].detach().to(torch.float32).clone()


def cap_row_norms(rows: Tensor, limit: float) -> None:
    """Shorten in place every row of (V, D) that is longer than `limit`; direction kept."""
    norms = rows.norm(dim=1, keepdim=True)
    rows.mul_(torch.clamp(limit / norms.clamp(min=1e-12), max=1.0))
