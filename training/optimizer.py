"""The optimiser: Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices of the layers, AdamW for
the rest (embedding, router, norms)."""

import torch

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the post's coefficients: singular values end in about 0.7 to 1.2


def orthogonalize(matrices, steps=5):
    """Brings the singular values of every matrix of [count, rows, columns] near 1, by Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    wide = x.shape[1] > x.shape[2]
    if wide:
        x = x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if wide else x).to(matrices.dtype)


def _blocks(name, parameter, config):
    """The matrices that are orthogonalised apart: one per head (query, key, value) or expert. [count, rows, columns]"""
    if name.endswith("o_proj.weight"):
        return parameter.view(1, *parameter.shape)
    if name.endswith("down_proj.weight"):  # [hidden, experts * expert_size]
        return parameter.view(-1, config.num_experts, config.expert_size).transpose(0, 1)
    rows = config.expert_size if ".experts." in name else config.head_dim
    return parameter.view(-1, rows, parameter.shape[1])


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per head or expert. A step changes a matrix of [rows, columns] by lr * its larger side^0.5
    * 0.2 in norm per direction, as AdamW would at that rate (Liu et al., arXiv 2502.16982, section 2.2)."""

    def __init__(self, named, config, lr, weight_decay):
        self._names = [name for name, _ in named]
        self._config = config
        super().__init__([p for _, p in named], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        by_shape = {}
        for group in self.param_groups:
            for name, parameter in zip(self._names, group["params"]):
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
                update = parameter.grad.lerp(state["momentum"], _MOMENTUM)
                blocks = _blocks(name, update, self._config)
                by_shape.setdefault(blocks.shape[1:], []).append((name, parameter, blocks, group))
        for shape, entries in by_shape.items():
            done = orthogonalize(torch.cat([blocks for _, _, blocks, _ in entries]))
            scale = 0.2 * max(shape) ** 0.5
            for (name, parameter, blocks, group), change in zip(entries, done.split([len(e[2]) for e in entries])):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                _blocks(name, parameter, self._config).add_(change, alpha=-group["lr"] * scale)


class Optimizer:
    """Both optimisers as one. `rate` scales the learning rates of both."""

    def __init__(self, model, lr, weight_decay=0.01):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in named if n.endswith("_proj.weight")]
        rest = [p for n, p in named if not n.endswith("_proj.weight")]
        self._lr = lr
        self._parts = (
            Muon(matrices, model.config, lr, weight_decay),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
        )

    def zero_grad(self):
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate):
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self._lr * rate
            part.step()

    def state_dict(self):
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, state):
        for part, of_part in zip(self._parts, state):
            part.load_state_dict(of_part)
