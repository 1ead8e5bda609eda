"""Adversarial training of one direction, step by step, by a number of steps or of seconds, and its state on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.shape import condition
from surveybridge.bridge_core.comparators.translator import Translator
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.metrics import energy_score
from surveybridge.bridge_core.problem import Direction, Problem
from surveybridge.bridge_core.training import Ends, augment, step_generator


@dataclass(frozen=True)
class AdversarialRecipe:
    """How long, and on how many pairs at a time.

    Parameters
    ----------
    budget
        Of this direction, over all runs that led here; its seed is that of pairs and noise.
    batch_size
        Pairs a step.
    roll
        Whether half of the pairs are rolled around the window's edge, as bridges on the mosaic grid are trained.
    """

    budget: Budget
    batch_size: int = 32
    roll: bool = False


@dataclass(frozen=True)
class Losses:
    """What a step ended with."""

    step: int
    generator: float
    critic: float


class AdversarialTraining:
    """A generator and its critic, Adam of both, the running average, and how far they are.

    Parameters
    ----------
    network
        Being trained.
    recipe
        How.
    """

    def __init__(self, network: Translator, recipe: AdversarialRecipe) -> None:
        # several times faster in bfloat16 on CPUs
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = recipe
        critics = list(network.critic.parameters())
        ids = {id(parameter) for parameter in critics}
        makers = [parameter for parameter in network.parameters() if id(parameter) not in ids]
        self.optimizers = {
            "generator": torch.optim.Adam(makers, lr=network.rates[0], betas=network.betas),
            "critic": torch.optim.Adam(critics, lr=network.rates[1], betas=network.betas),
        }
        self.average: dict[str, Tensor] = {}
        if network.decay:
            self.average = {name: value.detach().clone() for name, value in network.generator.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def run(self, problem: Problem, direction: Direction, ends: Ends) -> Iterator[Losses]:
        """Train until the budget is used, yielding the losses of every step.

        Parameters
        ----------
        problem, direction
            What `ends` are, and which of them is wanted.
        ends
            Training pairs in network units, complete.
        """
        if not self.step:
            self.network.fit_to(condition(ends[1 - direction.index], direction))
        while self.recipe.budget.progress(self.step, self.seconds) < 1:
            began = time.process_time()
            draws = step_generator(self.recipe.budget.seed, self.step, 0)
            rows = torch.randint(0, len(ends[0]), (self.recipe.batch_size,), generator=draws)
            batch = augment((ends[0][rows], ends[1][rows]), problem, draws, roll=self.recipe.roll)
            x1, x0 = batch[1 - direction.index], direction.wanted.planes_in(batch[direction.index])
            losses = self.update(condition(x1, direction), x0, draws)
            self.seconds += time.process_time() - began
            yield losses

    def update(self, seen: Tensor, truth: Tensor, draws: torch.Generator) -> Losses:
        """Take one step of the critic, then one of the generator, on the same images [N, P, H, W]."""
        network, recipe = self.network, self.recipe
        progress = recipe.budget.progress(self.step, self.seconds)
        fall = min(1.0, 2 * (1 - min(progress, 1.0))) if network.falling else 1.0
        for optimizer, rate in zip(self.optimizers.values(), network.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * fall
        seen, truth = (x.contiguous(memory_format=torch.channels_last) for x in (seen, truth))
        z = torch.randn(len(seen), network.deviates, generator=draws).to(seen.device)
        with torch.autocast(seen.device.type, torch.bfloat16):
            made, penalty = network.attempt(seen, truth, z)
            critic = network.critic_loss(seen, truth, made.detach(), draws)
        self._take("critic", critic)
        network.critic.requires_grad_(False)
        with torch.autocast(seen.device.type, torch.bfloat16):
            generator = network.generator_loss(seen, truth, made) + penalty
        self._take("generator", generator)
        network.critic.requires_grad_(True)
        self.step += 1
        self._average()
        return Losses(self.step, float(generator.detach()), float(critic.detach()))

    def save(self, path: str | Path) -> None:
        """Write all of it as one safetensors file."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for which, optimizer in self.optimizers.items():
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{which}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, path)

    def load(self, path: str | Path) -> None:
        """Continue from what `save` wrote; BridgeError if that is damaged, or of another method or size."""
        try:
            tensors = load_file(path)
            self.network.load_state_dict(_below(tensors, "network."))
        except (SafetensorError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise BridgeError(f"{path} is no state of this training ({said}); delete it to begin anew") from error
        self.average = _below(tensors, "average.")
        for which, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, f"{which}.").items():
                number, _, key = name.partition(".")
                state.setdefault(int(number), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step, self.seconds = int(tensors["step"]), float(tensors["seconds"])

    @torch.no_grad()
    def validation(self, direction: Direction, ends: Ends, samples: int = 3) -> float:
        """Return the mean fair energy score of K samples of pairs that are not trained on; training is not disturbed.

        It is that of AS-Bridge's definition (`metrics.energy_score`), with the weights that would draw samples now.
        """
        x1, truth = ends[1 - direction.index], direction.wanted.planes_in(ends[direction.index])
        seen, noise = condition(x1, direction), step_generator(self.recipe.budget.seed, 0, 1)
        z = torch.randn(samples, len(seen), self.network.deviates, generator=noise).to(seen.device)
        generator = self.network.generator.eval()
        with torch.autocast(seen.device.type, torch.bfloat16):
            drawn = [functional_call(generator, self.average, (seen, one)) for one in z]
        generator.train()
        images = torch.stack([self.network.shape.bounded(one) for one in drawn])
        return float(energy_score(images, truth, fair=True).mean())

    def finished(self) -> Translator:
        """Return the network with the weights that draw samples: the average, where the method keeps one."""
        if self.network.decay:
            self.network.generator.load_state_dict(self.average)
        return self.network.eval().requires_grad_(False)

    def _take(self, which: str, loss: Tensor) -> None:
        self.optimizers[which].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[which].step()

    def _average(self) -> None:
        """Move the average; its memory grows with the steps, for a short training is shorter than the published one."""
        decay = min(self.network.decay, self.step / (self.step + 10))
        learnt = {name for name, _ in self.network.generator.named_parameters()}
        with torch.no_grad():
            for name, average in self.average.items():
                value = self.network.generator.state_dict()[name]
                average.lerp_(value, 1 - decay if name in learnt else 1.0)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
