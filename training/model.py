"""Qwen3-MoE (arXiv 2505.09388) in PyTorch, for training: it runs on torch 1.13 (CPU) and 2.x (GPU) alike.

Per layer: RMSNorm, grouped-query attention with query and key heads normalised before the rotary positions (halves
rotated), RMSNorm, and a mixture of SwiGLU experts chosen by a softmax router, the chosen weights renormalised.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int
    expert_size: int
    head_dim: int = 64
    experts_per_token: int = 2
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    max_positions: int = 8192

    def num_parameters(self):
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads) + 2 * self.head_dim
        experts = self.num_experts * self.hidden_size * (3 * self.expert_size + 1)
        return (
            self.vocab_size * self.hidden_size
            + self.num_layers * (attention + experts + 2 * self.hidden_size)
            + self.hidden_size
        )


class RmsNorm(nn.Module):
    def __init__(self, size, eps, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), float(scale)))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rotary_angles(config, length):
    """cos and sin [length, head_dim / 2], float32."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """x [batch, heads, length, head_dim]; pairs are (i, i + head_dim / 2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class _CausalAttention(torch.autograd.Function):
    """Causal grouped-query attention for CPUs: blocks of queries skip the keys after them, the heads of a group are rows
    of one product, and the gradients of keys and values are summed in place."""

    QUERY_BLOCK = 256

    @classmethod
    def _rows(cls, x, kv_heads, begin, end):
        """Heads of x [batch, heads, length, head_dim] as [batch * kv_heads, group * (end - begin), head_dim]."""
        batch, heads, length, dim = x.shape
        grouped = x.view(batch, kv_heads, heads // kv_heads, length, dim)
        return grouped[:, :, :, begin:end].reshape(batch * kv_heads, -1, dim)

    @classmethod
    def forward(cls, ctx, q, k, v):
        (batch, heads, length, dim), kv_heads = q.shape, k.shape[1]
        keys, values = k.reshape(-1, length, dim), v.reshape(-1, length, dim)
        out = torch.empty_like(q).view(batch, kv_heads, heads // kv_heads, length, dim)
        weights = []
        for begin in range(0, length, cls.QUERY_BLOCK):
            end = min(begin + cls.QUERY_BLOCK, length)
            rows = cls._rows(q, kv_heads, begin, end) * dim**-0.5
            scores = rows @ keys[:, :end].transpose(1, 2)
            future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
            scores.view(batch * kv_heads, -1, end - begin, end)[..., begin:].masked_fill_(future, -math.inf)
            weights.append(scores.softmax(-1))
            out[:, :, :, begin:end] = (weights[-1] @ values[:, :end]).view(batch, kv_heads, -1, end - begin, dim)
        ctx.save_for_backward(q, keys, values, *weights)
        return out.view_as(q)

    @classmethod
    def backward(cls, ctx, gradient):
        q, keys, values, *weights = ctx.saved_tensors
        batch, heads, length, dim = q.shape
        kv_heads, gradient = len(keys) // batch, gradient.contiguous()
        of_q = torch.empty_like(q).view(batch, kv_heads, heads // kv_heads, length, dim)
        of_keys, of_values = torch.zeros_like(keys), torch.zeros_like(values)
        for begin, chosen in zip(range(0, length, cls.QUERY_BLOCK), weights):
            end = min(begin + cls.QUERY_BLOCK, length)
            of_out = cls._rows(gradient, kv_heads, begin, end)
            of_values[:, :end].baddbmm_(chosen.transpose(1, 2), of_out)
            of_scores = torch._softmax_backward_data(of_out @ values[:, :end].transpose(1, 2), chosen, -1, q.dtype)
            of_scores *= dim**-0.5
            of_q[:, :, :, begin:end] = (of_scores @ keys[:, :end]).view(batch, kv_heads, -1, end - begin, dim)
            of_keys[:, :end].baddbmm_(of_scores.transpose(1, 2), cls._rows(q, kv_heads, begin, end))
        return of_q.view_as(q), of_keys.view(batch, kv_heads, length, dim), of_values.view(batch, kv_heads, length, dim)


def causal_attention(q, k, v):
    """q [batch, heads, length, head_dim], k, v [batch, kv_heads, length, head_dim] -> as q."""
    if not q.is_cuda:
        return _CausalAttention.apply(q.contiguous(), k, v)
    return F.scaled_dot_product_attention(q, repeat_heads(k, q), repeat_heads(v, q), is_causal=True)


def repeat_heads(k, q):
    """The key or value head of each query head. [batch, kv_heads, length, head_dim] -> [batch, heads, ...]"""
    return k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads * dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv * dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv * dim, bias=False)
        self.o_proj = nn.Linear(heads * dim, config.hidden_size, bias=False)
        self.q_norm = RmsNorm(dim, config.rms_eps)
        self.k_norm = RmsNorm(dim, config.rms_eps)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        config = self.config

        def heads(projected, count):
            return projected.view(batch, length, count, config.head_dim)

        q = self.q_norm(heads(self.q_proj(x), config.num_heads)).transpose(1, 2)
        k = self.k_norm(heads(self.k_proj(x), config.num_kv_heads)).transpose(1, 2)
        v = heads(self.v_proj(x), config.num_kv_heads).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = causal_attention(q, k, v.to(q.dtype))
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


@dataclasses.dataclass
class Routing:
    """What a layer's router did, for the losses and for the report."""

    balance_loss: torch.Tensor  # Switch Transformer (arXiv 2101.03961), eq. 4: 1 where all experts get the same
    z_loss: torch.Tensor  # ST-MoE (arXiv 2202.08906), eq. 5
    load: torch.Tensor  # [num_experts] share of the choices


class _PermuteRows(torch.autograd.Function):
    """x[order], where order is a permutation: its gradient is a gather too, where index_select's would be a scatter."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient):
        (order,) = ctx.saved_tensors
        return gradient.index_select(0, order.argsort()), None


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        wide = config.num_experts * config.expert_size
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.down_proj = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(self, x, real):
        """x [tokens, hidden]; real [tokens] is 0 for padding, which counts in no loss."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.router.weight.float().T
            probabilities = logits.softmax(-1)
            chosen = probabilities.topk(config.experts_per_token, dim=-1)
            weights = chosen.values / chosen.values.sum(-1, keepdim=True)
            share = real[:, None] / real.sum()
            choices = torch.zeros_like(probabilities).scatter(1, chosen.indices, 1.0)
            load = (choices * share).sum(0) / config.experts_per_token
            balance = config.num_experts * (load * (probabilities * share).sum(0)).sum()
            z_loss = (logits.logsumexp(-1).pow(2) * share[:, 0]).sum()
        mix = self._dense if x.is_cuda else self._gathered
        return mix(x, chosen.indices, weights), Routing(balance, z_loss, load.detach())

    def _dense(self, x, experts, weights):
        """All experts as one network whose hidden units the router weights: more arithmetic, but in few kernels."""
        config = self.config
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)
        factors = weights.new_zeros(x.shape[0], config.num_experts).scatter(1, experts, weights).to(hidden.dtype)
        hidden = hidden.view(-1, config.num_experts, config.expert_size) * factors[:, :, None]
        return self.down_proj(hidden.flatten(1))

    def _gathered(self, x, experts, weights):
        """Each expert over its own tokens."""
        config = self.config
        order = experts.flatten().argsort()
        counts = torch.bincount(experts.flatten(), minlength=config.num_experts).tolist()
        copies = x[:, None].expand(-1, config.experts_per_token, -1).reshape(-1, x.shape[1])
        gates = self.gate_proj.weight.split(config.expert_size)
        ups = self.up_proj.weight.split(config.expert_size)
        downs = self.down_proj.weight.split(config.expert_size, dim=1)
        outputs = [
            F.linear(F.silu(F.linear(own, gate)) * F.linear(own, up), down)
            for own, gate, up, down in zip(_PermuteRows.apply(copies, order).split(counts), gates, ups, downs)
        ]
        outputs = _PermuteRows.apply(torch.cat(outputs), order.argsort()).view(x.shape[0], -1, x.shape[1])
        return (outputs * weights[:, :, None]).sum(1)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config)
        self.experts_norm = RmsNorm(config.hidden_size, config.rms_eps)
        self.experts = Experts(config)

    def forward(self, x, cos, sin, real):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out, routing = self.experts(self.experts_norm(x).flatten(0, 1), real.flatten())
        return x + out.view_as(x), routing


# How the first layer begins (start_with_previous_token_heads), chosen so that the wanted token gets most of the weight.
_COMMON = 4.0  # the common direction of the embedding, in standard deviations of the others
_NOISE = 0.1  # what is left of the random projections
_SHARPNESS = 1.6  # of query and key norms


class Model(nn.Module):
    def __init__(self, config, seed=0):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_eps)
        self._angles = None
        self._init(torch.Generator().manual_seed(seed))

    def _init(self, generator):
        for name, parameter in self.named_parameters():
            if parameter.dim() != 2:
                continue
            std = 0.02 if name.startswith("embedding") else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.config.num_layers)
            with torch.no_grad():
                parameter.normal_(0, std, generator=generator)

    def start_with_previous_token_heads(self):
        """Lets the heads of the first layer begin as heads that look 1, 2, ... tokens back.

        Copying from a context needs such heads below the heads that match (Olsson et al., arXiv 2209.11895), and their
        forming is what training waits for. RoPE makes one of any constant query and key: one direction of the
        embedding is made equal in all tokens, and the projections read only that.
        """
        config, attention = self.config, self.layers[0].attention
        frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        strength = (frequencies > 0.05).float()  # only fast rotations tell neighbours apart
        with torch.no_grad():
            self.embedding.weight[:, 0] = _COMMON * self.embedding.weight.std()
            keys = torch.cat((strength, torch.zeros_like(strength)))
            attention.k_proj.weight.mul_(_NOISE)
            attention.q_proj.weight.mul_(_NOISE)
            attention.k_proj.weight[:, 0] = keys.repeat(config.num_kv_heads)
            for head in range(config.num_heads):
                # Heads of one group share keys, so that the offset is in the query.
                back = 1 + head
                turned = torch.cat((strength * (back * frequencies).cos(), -strength * (back * frequencies).sin()))
                attention.q_proj.weight[head * config.head_dim : (head + 1) * config.head_dim, 0] = turned
            attention.q_norm.weight.fill_(_SHARPNESS)
            attention.k_norm.weight.fill_(_SHARPNESS)

    def angles(self, length, device):
        if self._angles is None or self._angles[0].shape[0] < length or self._angles[0].device != device:
            self._angles = tuple(t.to(device) for t in rotary_angles(self.config, length))
        return tuple(t[:length] for t in self._angles)

    def forward(self, tokens, real):
        """tokens [batch, length] -> (final hidden states, normed, [batch, length, hidden], a Routing per layer)."""
        cos, sin = self.angles(tokens.shape[1], tokens.device)
        x = self.embedding(tokens)
        routings = []
        for layer in self.layers:
            x, routing = layer(x, cos, sin, real)
            routings.append(routing)
        return self.norm(x), routings

    def logits(self, hidden):
        return F.linear(hidden, self.embedding.weight.to(hidden.dtype))
