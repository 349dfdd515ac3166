"""The recurrent head: LSTM over features, then pose (tanh) and gripper (sigmoid). Source: RoboFlamingo 4.3, eq. 5-6."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from rfedge.config import HeadConfig
from rfedge.messages import POSE_SIZE

__all__ = ["LSTMHead"]

# B = batch, S = steps, D = feature width, H = hidden, L = LSTM layers, K = chunk


_UPPER_LAYER_GAIN = 4.0


def _mlp(sizes: tuple[int, ...], output_size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], output_size))


class LSTMHead(nn.Module):
    """Features -> stacked actions, with the state as argument and result."""

    def __init__(self, config: HeadConfig, feature_size: int, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.state_shape = (config.layers, config.hidden_size)
        self.rnn = nn.LSTM(
            feature_size,
            config.hidden_size,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        sizes = (config.hidden_size, *config.mlp_sizes)
        self.pose = _mlp(sizes, POSE_SIZE * chunk_size)
        self.gripper = _mlp(sizes, chunk_size)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Draw weights through which a feature still reaches the action, and a gradient the feature.

        A fresh LSTM layer returns about a fifth of its input's size (sigmoid gates near one half, squared by the
        cell and the output), PyTorch's default MLP layer about four tenths: over this depth nothing is left of the
        frame. Upper LSTM layers therefore get inputs four times larger, the MLPs He's scale, and forget gates open.
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
        for mlp in (self.pose, self.gripper):
            layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def standardise_input(self, mean_D: torch.Tensor, deviation_D: torch.Tensor) -> None:
        """Fold (x - mean) / deviation into the first LSTM layer, before training starts.

        A maximum over tokens is far from zero on average, and an LSTM sees that offset before it sees a difference.
        """
        parameters = dict(self.rnn.named_parameters())
        weight = parameters["weight_ih_l0"]
        weight.div_(deviation_D)
        parameters["bias_ih_l0"].sub_(weight @ mean_D)

    def forward(
        self,
        features_BSD: torch.Tensor,
        h_LBH: torch.Tensor,
        c_LBH: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run S steps and act after the last: pose (B, K, 6) in [-1, 1], gripper probability (B, K), h, c."""
        hidden, (h, c) = self.rnn(features_BSD, (h_LBH, c_LBH))
        pose, gripper_logit = self._act(hidden[:, -1:])
        return pose[:, 0], torch.sigmoid(gripper_logit[:, 0]), h, c

    def unroll(self, features_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From zero state, act after every step: pose (B, S, K, 6), gripper logit (B, S, K)."""
        return self._act(self.rnn(features_BSD)[0])

    def _act(self, hidden_BSH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pose = torch.tanh(self.pose(hidden_BSH)).unflatten(-1, (self.chunk_size, POSE_SIZE))
        return pose, self.gripper(hidden_BSH)
