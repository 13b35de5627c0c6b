"""Muon, momentum whose matrices are made orthogonal (K. Jordan, 2024), beside AdamW for the rest."""

import torch


def orthogonal(g, steps=5):
    """Return about U V^T of g = U S V^T, by Newton-Schulz in bfloat16."""
    x = g.bfloat16()
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.T if turned else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal steps.

    Parameters
    ----------
    parameters : iterable of Tensor
        Matrices, or kernels taken as matrices of outputs by everything else.
    lr, momentum : float
        As usual.
    """

    def __init__(self, parameters, lr=0.02, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """Take a step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(m, group["momentum"]).reshape(p.shape[0], -1)
                scale = max(1.0, g.shape[0] / g.shape[1]) ** 0.5
                p.add_(orthogonal(g).reshape(p.shape), alpha=-group["lr"] * scale)


class Both:
    """Muon for the kernels between stem and head, AdamW for the rest.

    Parameters
    ----------
    net : torch.nn.Module
        What is trained.
    rate : float
        AdamW's; Muon's is 25 times that.
    apart : tuple of str
        Beginnings of names that are AdamW's though they are kernels.
    """

    def __init__(self, net, rate, apart=("stem", "head")):
        kernels = [
            p for n, p in net.named_parameters() if p.ndim > 1 and not n.startswith((*apart, "gain", "bias"))
        ]
        chosen = {id(p) for p in kernels}
        others = [p for p in net.parameters() if id(p) not in chosen]
        self.muon = Muon(kernels)
        self.adam = torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(self, rate):
        """Set the rates."""
        for g in self.adam.param_groups:
            g["lr"] = rate
        for g in self.muon.param_groups:
            g["lr"] = 25 * rate

    def zero_grad(self):
        """Forget gradients."""
        self.adam.zero_grad()
        self.muon.zero_grad()

    def step(self):
        """Take a step."""
        self.adam.step()
        self.muon.step()

    def state_dict(self):
        """Return both states."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state):
        """Take both states."""
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
