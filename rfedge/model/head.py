"""The heads: features of single frames -> stacked actions, through what each remembers of the frames before.

Every head ends in one MLP for the pose (tanh) and one for the gripper (sigmoid). The LSTM keeps a state; GPT reads the
features of the last frames again at every step; the MLP sees the present feature alone. Source: RoboFlamingo 4.3,
eq. 5-6, and 5.4.1 (policy formulations).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import GPTHeadConfig, HeadConfig, LSTMHeadConfig, MLPHeadConfig
from rfedge.messages import POSE_SIZE
from rfedge.model.attention import attend, split_heads

# B = batch, S = steps, D = feature width, H = hidden, L = LSTM layers, K = chunk


_UPPER_LAYER_GAIN = 4.0
_GPT_DEVIATION = 0.02  # GPT-2, section 2.3


def _mlp(sizes: tuple[int, ...], output_size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], output_size))


class PolicyHead(nn.Module, ABC):
    """Interface of every head to training and parity."""

    first_layer: tuple[str, str]  # its weight and bias
    chunk_size: int
    pose: nn.Sequential
    gripper: nn.Sequential

    def unroll(self, features_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Remembering nothing before the first step, act after each: pose (B, S, K, 6), gripper logit (B, S, K)."""
        return self._act(self._hidden(features_BSD))

    @torch.no_grad()
    def standardise_input(self, mean_D: torch.Tensor, deviation_D: torch.Tensor) -> None:
        """Fold (x - mean) / deviation into the first layer, before training starts.

        A maximum over tokens is far from zero on average, and a head sees that offset before it sees a difference.
        """
        parameters = dict(self.named_parameters())
        weight, bias = (parameters[name] for name in self.first_layer)
        weight.div_(deviation_D)
        bias.sub_(weight @ mean_D)

    @abstractmethod
    def _hidden(self, features_BSD: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, H), the first step remembering nothing."""

    def _add_outputs(self, hidden_size: int, mlp_sizes: tuple[int, ...], chunk_size: int) -> None:
        self.chunk_size = chunk_size
        sizes = (hidden_size, *mlp_sizes)
        self.pose = _mlp(sizes, POSE_SIZE * chunk_size)
        self.gripper = _mlp(sizes, chunk_size)

    def _reset_outputs(self) -> None:
        """He's scale: PyTorch's default layer returns about four tenths of its input's size."""
        for mlp in (self.pose, self.gripper):
            layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
                nn.init.zeros_(layer.bias)

    def _act(self, hidden_BSH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pose = torch.tanh(self.pose(hidden_BSH)).unflatten(-1, (self.chunk_size, POSE_SIZE))
        return pose, self.gripper(hidden_BSH)

    def _act_last(self, hidden_BSH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pose, gripper_logit = self._act(hidden_BSH[:, -1:])
        return pose[:, 0], torch.sigmoid(gripper_logit[:, 0])


class LSTMHead(PolicyHead):
    """Features -> stacked actions, with the state as argument and result."""

    first_layer = ("rnn.weight_ih_l0", "rnn.bias_ih_l0")

    def __init__(self, config: LSTMHeadConfig, feature_size: int, chunk_size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(
            feature_size,
            config.hidden_size,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self._add_outputs(config.hidden_size, config.mlp_sizes, chunk_size)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Sample weights through which a feature still reaches the action, and a gradient the feature.

        A fresh LSTM layer returns about a fifth of its input's size (sigmoid gates near one half, squared by the
        cell and the output): over this depth nothing is left of the frame. Upper LSTM layers therefore get inputs four
        times larger, the MLPs He's scale, and forget gates open.
        """
        hidden = self.rnn.hidden_size
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter, gain=1.0 if name.endswith("_l0") else _UPPER_LAYER_GAIN)
            elif name.startswith("weight_hh"):
                for gate in parameter.data.split(hidden):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    parameter.data[hidden : 2 * hidden] = 1.0  # gate order: input, forget, cell, output
        self._reset_outputs()

    def forward(
        self, features: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run S steps on features (B, S, D), or (1, S, D) for rows that all see the same, with h and c (L, B, H).

        Acts after the last: pose (B, K, 6) in [-1, 1], gripper probability (B, K), h, c.
        """
        if features.shape[0] != h.shape[1]:
            features = features.expand(h.shape[1], -1, -1)
        hidden, (h, c) = self.rnn(features, (h, c))
        return *self._act_last(hidden), h, c

    def _hidden(self, features_BSD: torch.Tensor) -> torch.Tensor:
        return self.rnn(features_BSD)[0]  # type: ignore[no-any-return]


class _GPTBlock(nn.Module):
    """Pre-norm causal attention and MLP, as in GPT-2."""

    def __init__(self, config: GPTHeadConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.ln_1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp_up = nn.Linear(config.width, 4 * config.width)
        self.mlp_down = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSH: torch.Tensor, bias_SS: torch.Tensor) -> torch.Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.ln_1(x_BSH)).chunk(3, dim=-1))
        x = x_BSH + self.dropout(self.out_proj(attend(q, k, v, bias_SS)))
        return x + self.dropout(self.mlp_down(F.gelu(self.mlp_up(self.ln_2(x)))))  # type: ignore[no-any-return]


class GPTHead(PolicyHead):
    """A causal transformer over the features of at most `window` frames."""

    first_layer = ("input.weight", "input.bias")
    bias: torch.Tensor

    def __init__(self, config: GPTHeadConfig, feature_size: int, chunk_size: int, window: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_size, config.width)
        self.positions = nn.Parameter(torch.empty(window, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_GPTBlock(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        future = torch.ones(window, window).triu(1).bool()
        self.register_buffer("bias", torch.zeros(window, window).masked_fill(future, float("-inf")), persistent=False)
        self._add_outputs(config.width, config.mlp_sizes, chunk_size)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """As GPT-2; what a block adds is smaller the more blocks there are. The input keeps a feature's size."""
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        nn.init.normal_(self.positions, std=_GPT_DEVIATION)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("out_proj.weight", "mlp_down.weight"))
                nn.init.normal_(parameter, std=_GPT_DEVIATION / ((2 * len(self.blocks)) ** 0.5 if last else 1.0))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        self._reset_outputs()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, S, D) of the last S <= window frames, oldest first -> pose (B, K, 6), gripper probability (B, K)."""
        return self._act_last(self._hidden(features))

    def _hidden(self, features_BSD: torch.Tensor) -> torch.Tensor:
        num_steps = features_BSD.shape[1]
        x = self.dropout(self.input(features_BSD) + self.positions[:num_steps])
        for block in self.blocks:
            x = block(x, self.bias[:num_steps, :num_steps])
        return self.ln_f(x)  # type: ignore[no-any-return]


class MLPHead(PolicyHead):
    """The present feature alone, through two layers and the output MLPs."""

    first_layer = ("trunk.0.weight", "trunk.0.bias")

    def __init__(self, config: MLPHeadConfig, feature_size: int, chunk_size: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(feature_size, feature_size // 2),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(feature_size // 2, config.hidden_size),
            nn.ReLU(),
        )
        self._add_outputs(config.hidden_size, config.mlp_sizes, chunk_size)
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self._reset_outputs()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, S, D), of which the last counts -> pose (B, K, 6), gripper probability (B, K)."""
        return self._act_last(self._hidden(features[:, -1:]))

    def _hidden(self, features_BSD: torch.Tensor) -> torch.Tensor:
        return self.trunk(features_BSD)  # type: ignore[no-any-return]


def build_head(config: HeadConfig, feature_size: int, chunk_size: int, window: int) -> PolicyHead:
    """Return the head that `config` describes; a GPT head learns one position for each frame of `window`."""
    if isinstance(config, LSTMHeadConfig):
        return LSTMHead(config, feature_size, chunk_size)
    if isinstance(config, GPTHeadConfig):
        return GPTHead(config, feature_size, chunk_size, window)
    return MLPHead(config, feature_size, chunk_size)
