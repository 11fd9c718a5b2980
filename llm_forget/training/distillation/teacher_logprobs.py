"""The teacher's distributions at the target positions of forget rows, computed once and cached on disk.

For each distribution, the log-probs of its most likely tokens are stored. The name of the cache file is a digest of all
inputs. Only its owner can read the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.core.files import write_atomic
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.logprobs.top_tokens import top_tokens

TOP = 128  # maximum number of tokens of a distribution that are stored


class TeacherLogprobs:
    """Distributions at the M target positions of all rows, shortened to K tokens, at one temperature.

    Row i has the entries ``offsets[i]:offsets[i + 1]`` of ``tokens`` and ``logprobs``, each ``[M, K]``.
    """

    def __init__(self, offsets: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, temperature: float) -> None:
        self._offsets, self._tokens, self._logprobs, self.temperature = offsets, tokens, logprobs, temperature

    @classmethod
    def of(
        cls, logits: Iterable[Tensor], labels: Iterable[Tensor], counts: Sequence[int], temperature: float
    ) -> TeacherLogprobs:
        """Shorten distributions, given as ``logits`` ``[n, V]``. Gold tokens, ``labels`` ``[n]``, are always stored.

        ``counts`` has the number of targets of each window of the tokenised data set.
        """
        tokens, logprobs = [], []
        for values, gold in zip(logits, labels, strict=True):
            values = (values.float() / temperature).log_softmax(-1)  # [n, V]
            top, stored = top_tokens(values, gold, TOP)  # [n, K]
            tokens.append(top.int().numpy())
            logprobs.append(stored.numpy())
        offsets = np.cumsum([0, *counts])
        assert offsets[-1] == sum(map(len, tokens))
        return cls(offsets, np.concatenate(tokens), np.concatenate(logprobs), temperature)

    def lookup(self, rows: Tensor, policy: Logprobs) -> Logprobs:
        """Return the distributions of ``rows`` ``[B]`` (-1: padding) as logits ``[B, T, V]``, aligned with ``policy``.

        ``softmax(logits / temperature)`` is the teacher's distribution. The probability of tokens that are not stored
        is divided among them in the proportions of the policy. So value and gradient of a KL are the same as if all
        these tokens were one.
        """
        assert policy.logits is not None
        places = [(b, *self._offsets[[row, row + 1]]) for b, row in enumerate(rows.tolist()) if row >= 0]
        where = torch.zeros_like(policy.mask)
        for b, start, stop in places:
            where[b, : stop - start] = True
        # With several processes, all rows of a batch may be padding.
        entries = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for _, start, stop in places)])
        device = policy.logits.device
        tokens = torch.from_numpy(self._tokens[entries].astype(np.int64)).to(device)  # [N, K]
        stored = torch.from_numpy(self._logprobs[entries]).to(device)  # [N, K]
        policy_logprobs = (policy.logits.detach()[where].float() / self.temperature).log_softmax(-1)  # [N, V]
        rest = policy_logprobs.scatter(-1, tokens, -torch.inf)
        mass = torch.log1p(-stored.logsumexp(-1, keepdim=True).exp().clamp(max=1.0))  # [N, 1], -inf if all are stored
        spread = rest - rest.logsumexp(-1, keepdim=True).clamp(min=torch.finfo(rest.dtype).min) + mass
        logprobs = spread.scatter(-1, tokens, stored)
        logits = policy.logits.new_zeros(policy.logits.shape, dtype=torch.float32)
        logits[where] = self.temperature * logprobs
        return Logprobs(values=policy.values.detach(), mask=policy.mask, labels=policy.labels, logits=logits)

    def save(self, path: Path) -> None:
        """Write the distributions to a file that only its owner can read."""
        arrays = {"offsets": self._offsets, "tokens": self._tokens, "logprobs": self._logprobs}
        write_atomic(path, save({**arrays, "temperature": np.array([self.temperature])}), private=True)

    @classmethod
    def load(cls, path: Path) -> TeacherLogprobs:
        """Read a file that `save` wrote. Raise ConfigError if the file is damaged."""
        try:
            arrays = load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"the teacher's cached log-probs '{path}' are damaged; delete the file") from error
        return cls(arrays["offsets"], arrays["tokens"], arrays["logprobs"], float(arrays["temperature"][0]))
