"""The same network in PyTorch, on dense (B, N, K) tensors, eager or compiled, on the processor or on a GPU."""

import math

import torch
from torch import nn

from fastperm import Adam


class Network(nn.Module):
    """The layers of a `fastperm.DeepSet` with mean aggregation and mean pooling, under the same parameter names."""

    def __init__(self, parameters):
        super().__init__()
        depth = sum(name.endswith(".self") for name in parameters)
        self.layers = nn.ModuleList(
            _parameters(parameters, f"layers.{i}.", ("self", "pool", "bias")) for i in range(depth)
        )
        self.head = _parameters(parameters, "head.", ("weight", "bias"))

    def forward(self, x):  # (B, N, K_in)
        """Return the predictions, (B, K_fin)."""
        for layer in self.layers:
            of_set = torch.addmm(layer["bias"], x.mean(dim=1), layer["pool"])
            # In place: the gradient of a ReLU needs its output only, and a pass over memory is saved.
            x = (x @ layer["self"]).add_(of_set.unsqueeze(1)).relu_()
        return torch.addmm(self.head["bias"], x.mean(dim=1), self.head["weight"])


class TorchDeepSet:
    """Training of `Network` with PyTorch's fused Adam.

    Parameters
    ----------
    net : fastperm.DeepSet
        Where the parameters start; they are copied.
    compiled : bool, default=False
        Run the forward and the backward pass through ``torch.compile``.
    mode : str, optional
        Of ``torch.compile``; "max-autotune" tries out tiles of products and, on a GPU, replays CUDA graphs.
    device : str, default="cpu"
        Where.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of products on a GPU. For "bfloat16" PyTorch's autocast rounds the factors of every product, and keeps in
        bfloat16 what comes out of it; parameters, their gradients and the loss stay in float32.
    """

    def __init__(self, net, *, compiled=False, mode=None, device="cpu", precision="float32"):
        settings = Adam().config()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.network = Network(net.parameters).to(device)
        # Shapes are fixed in training, so the compiled code need not be general; the memory measurement uses two.
        # Training and inference are compiled apart, each when first called.
        self.forward = torch.compile(self.network, dynamic=False, mode=mode) if compiled else self.network
        self.autocast = precision == "bfloat16"
        if self.autocast:
            # Every parameter is rounded once a step: there is nothing to keep, and a CUDA graph may not keep it.
            settings_of_cast = {"dtype": torch.bfloat16, "cache_enabled": False}
            self.forward = torch.autocast(torch.device(device).type, **settings_of_cast)(self.forward)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=settings["learning_rate"],
            betas=(settings["beta1"], settings["beta2"]),
            fused=True,
        )
        self.beta2, self.epsilon = settings["beta2"], settings["epsilon"]
        self.steps = 0

    @property
    def n_parameters(self):
        """Number of trainable numbers."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def precision(self):
        """Return what decides the precision of its products, as PyTorch says it."""
        return {
            "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch.backends.cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            **({"torch.autocast": "bfloat16"} if self.autocast else {}),
        }

    def batch(self, x, targets):
        """Return the batch as tensors."""
        return torch.from_numpy(x).to(self.device), torch.from_numpy(targets).to(self.device)

    def step(self, x, targets):
        """Take one training step and return its loss."""
        self.steps += 1
        # PyTorch adds ε after the bias correction of √v, TensorFlow before: this ε makes the two the same.
        self.optimizer.param_groups[0]["eps"] = self.epsilon / math.sqrt(1 - self.beta2**self.steps)
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.forward(x).to(targets.dtype), targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def predict(self, x):
        """Return the predictions."""
        return self.forward(x).to(x.dtype).cpu().numpy()

    def evaluate(self, x, targets):
        """Return prediction, loss and the gradient of every parameter."""
        self.optimizer.zero_grad()
        prediction = self.forward(x).to(targets.dtype)
        loss = nn.functional.mse_loss(prediction, targets)
        loss.backward()
        gradients = {name: parameter.grad.cpu().numpy().copy() for name, parameter in self.network.named_parameters()}
        return prediction.detach().cpu().numpy(), loss.item(), gradients


def _parameters(parameters, prefix, names):
    return nn.ParameterDict({name: nn.Parameter(torch.tensor(parameters[prefix + name])) for name in names})
