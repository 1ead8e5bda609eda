"""What every adversarial translator is: a generator that takes noise, its critic, and the losses of both."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from surveybridge.bridge_core.comparators.shape import Shape


class Translator(nn.Module):
    """A generator of one direction with what trains it. Images are float32 [N, made, side, side] in network units.

    Parameters
    ----------
    shape
        Of its images.

    Attributes
    ----------
    generator, critic
        The two networks, of which only the first is needed to draw samples.
    deviates
        Standard normal deviates behind one sample.
    rates, betas
        Learning rates of generator and critic, and what Adam takes of both.
    decay
        Of the running average of the generator's weights, which then draws the samples; 0 for none.
    falling
        Whether the learning rates fall to 0 in the second half of the training.
    """

    generator: nn.Module
    critic: nn.Module
    deviates: int
    rates: tuple[float, float]
    betas: tuple[float, float]
    decay: float = 0.0
    falling: bool = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def generate(self, condition: Tensor, z: Tensor) -> Tensor:
        """Make images of conditions [N, seen, H, W] and deviates [N, deviates]."""
        return self.shape.bounded(self.generator(condition, z))

    def attempt(self, condition: Tensor, truth: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Make images as training does; returns them and a penalty of their own, a scalar."""
        return self.generate(condition, z), torch.zeros(())

    @abstractmethod
    def critic_loss(self, condition: Tensor, truth: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
        """Loss of the critic on images of the sky and images that were made, a scalar."""

    @abstractmethod
    def generator_loss(self, condition: Tensor, truth: Tensor, made: Tensor) -> Tensor:
        """Loss of the generator, a scalar; gradients flow through `made`."""

    def fit_to(self, conditions: Tensor) -> None:
        """Learn what a method must know of its training set [N, seen, H, W] before the first step."""
