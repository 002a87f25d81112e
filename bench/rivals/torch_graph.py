"""The same network in PyTorch with a whole training step, Adam included, in one CUDA graph.

What a step of `torch_deepset` still asks of the host, a few launches and Python between them, is gone here. A graph
needs an optimiser whose settings stay as they are, so ε is not adapted from step to step: nearly the same rule.
"""

import torch
from torch import nn

from rivals.torch_deepset import TorchDeepSet

WARM_UP = 3  # steps before a capture, on a stream of their own, as PyTorch's documentation asks for


class TorchGraph(TorchDeepSet):
    """Training of the network, compiled, with the whole step captured; one batch of fixed shape.

    Parameters
    ----------
    net : fastperm.DeepSet
        Where the parameters start; they are copied.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of products.
    """

    def __init__(self, net, *, precision="float32"):
        # Its products are those of cuBLAS: to try out others, as max-autotune does, takes half a minute a network.
        super().__init__(net, compiled=True, device="cuda", precision=precision)
        group = self.optimizer.param_groups[0]
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            **{name: group[name] for name in ("lr", "betas", "eps")},
            fused=True,
            capturable=True,
        )
        self.graph = None

    def step(self, x, targets):
        """Take one training step and return its loss."""
        if self.graph is None:
            self._capture(x, targets)
        self.graph.replay()
        return self.loss.item()

    def _capture(self, x, targets):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._take(x, targets)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.loss = self._take(x, targets)

    def _take(self, x, targets):
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(self.forward(x).to(targets.dtype), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()
