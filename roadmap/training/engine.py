"""The training step: a network, its optimizer, schedule and EMA, and what one iteration does to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.errors import config_error
from roadmap.networks import build_network, checkpoint_activations
from roadmap.rng import CHECK, INIT, MIX, STEP, reseed, seed_of
from roadmap.training.checkpoint import state_bytes
from roadmap.training.compiled import REPLAYED, CompilerFailed, calls_of, check_gradients, compile_network
from roadmap.training.device import PRECISIONS, autocast, oom_hint, oom_suggestions
from roadmap.training.device_transforms import DeviceTransform
from roadmap.training.distributed import Distributed
from roadmap.training.initial_weights import initialize_from
from roadmap.training.metrics import EvalMetrics, evaluate
from roadmap.training.optim import build_optimizer, build_schedule

logger = logging.getLogger(__name__)


class Engine:
    """A network, its optimizer, schedule and EMA; `iteration` counts the optimizer's steps.

    All processes hold the same, except the running statistics of BN, of which those of rank 0 count. `plan`
    is the configuration's for that many processes.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        iterations_per_epoch: int,
        world: Distributed | None = None,
        plan: BatchPlan | None = None,
    ) -> None:
        recipe, system = config.recipe, config.system
        self.config = config
        self.device = device
        self.iteration = 0
        self.between_iterations = True  # False once a part of a batch has changed running statistics
        self.world = world or Distributed()
        self.plan = plan or plan_batches(config, self.world.size)
        reseed(INIT, config.seed)
        # ours or timm's, with timm's methods
        self.model: Any = build_network(config).to(device).to(memory_format=torch.channels_last)
        if system.grad_checkpointing:
            checkpoint_activations(self.model, config)
        if system.sync_bn:
            self.model = convert_sync_batchnorm(self.model)  # also timm's norms with an activation
        self.optimizer = build_optimizer(recipe, self.model)
        self.schedule = build_schedule(recipe, self.optimizer, iterations_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema is not None else None
        self.device_transform = DeviceTransform(config, device)
        self.mix = build_mixup(config) if recipe.mixes else None
        self.smoothing = 0.0 if recipe.mixes else recipe.label_smoothing  # mixup smooths its labels itself
        self.ddp = self.world.data_parallel(self.model, device)
        self.forward: Any = self.ddp or self.model  # the network as training calls it
        self.replayed = system.compile in REPLAYED
        if system.compile != "off":
            self.forward = compile_network(self.forward, system.compile)

    def check_compiled(self) -> dict[str, Any] | None:
        """Compares what PyTorch has compiled with the eager network, on a micro-batch of noise; the report is
        for provenance.json.

        Where they differ, or nothing could be compiled, `system.compile: try` trains the eager network, with
        a warning, and other modes are a ConfigError. All processes decide alike. None where nothing is
        compiled.
        """
        if self.config.system.compile == "off":
            return None
        eager, check, problem = self.ddp or self.model, None, None
        with oom_hint(f"{self.plan.micro} images", oom_suggestions(self.config, self.plan.micro)):
            try:
                check = check_gradients(
                    self.model,
                    eager,
                    self.forward,
                    *self._noise(),
                    PRECISIONS[self.config.recipe.precision],
                    calls=calls_of(self.config.system.compile),
                )
                problem = f"compiled gradients are wrong: {check}" if check.wrong else None
            except CompilerFailed as error:
                problem = f"PyTorch cannot compile the network: {error}"
        problem = next(filter(None, self.world.gather(problem)), None)
        if problem is not None:
            problem = (
                f"{problem} (PyTorch {torch.__version__}, {self.config.recipe.precision}, on"
                f" {self.device.type})"
            )
            if self.config.system.compile != "try":
                fixes = (
                    "--set system.compile=off trains the eager network, system.compile=try does so where"
                    " the compiled one is wrong"
                )
                raise config_error("system.compile:", f"{problem}; {fixes}")
            logger.warning("%s; the eager network is trained", problem)
            self.forward = eager
        return {"trained": "compiled" if problem is None else "eager", "problem": problem} | (
            check.report() if check else {}
        )

    def _noise(self) -> tuple[Tensor, Tensor]:
        """Images and labels of a micro-batch, with the shapes, types and memory format that training has."""
        config, images = self.config, self.plan.micro
        reseed(CHECK, self.world.rank)
        size, channels = config.data.image_size, config.model.in_chans
        noise = torch.randn(images, channels, size, size, device=self.device)
        labels = torch.randint(config.model.num_classes, (images,), device=self.device)
        return noise.contiguous(memory_format=torch.channels_last), labels

    def train_step(self, batches: Iterable[Batch]) -> Tensor:
        """One iteration on this process's micro-batches, one per gradient accumulation step; returns the loss
        of the global batch, on the device.
        """
        self.schedule.step_update(self.iteration)
        if not self.model.training:  # walking hundreds of modules takes a millisecond
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        # The loader has started the transfer of each batch to the device while the one before was trained on.
        for step, batch in enumerate(batches):
            self.between_iterations = False
            last = step == self.plan.accumulation - 1
            # DDP averages gradients over the processes once an iteration, in the last step
            with nullcontext() if self.ddp is None or last else self.ddp.no_sync():
                images, labels = self._augment(batch, step)
                # for drop path, which draws for the micro-batch as a whole
                reseed(STEP, self.config.seed, self.iteration, self.world.rank, step)
                with autocast(self.config, self.device):
                    logits = self.forward(images)
                    loss = functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
                loss = loss / self.plan.accumulation
                torch.autograd.backward(self.scaler.scale(loss))
            if self.replayed and step == 0 and not last:
                for parameter in self.model.parameters():
                    # the next call would overwrite what the others are added to
                    parameter.grad = None if parameter.grad is None else parameter.grad.clone()
            total += loss.detach()
        if self.config.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.iteration)
        self.between_iterations = True
        return self.world.mean(total)

    def _augment(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Transforms each image by what the loader drew for it, and mixes each group by the group's random
        numbers: the same on any number of processes.
        """
        images, labels = self.device_transform(batch), batch.labels
        if self.mix is not None:
            mixed = []
            for part in self.plan.slices(self.world.rank, step):
                # timm draws from NumPy's global generator, and nothing on the device
                np.random.seed(seed_of(MIX, self.config.seed, self.iteration, part.group) % 2**32)
                # in place
                _, soft = self.mix(images[part.start : part.end], labels[part.start : part.end])
                mixed.append(soft)
            labels = torch.cat(mixed)
        return images, labels

    def lr(self) -> float:
        """The learning rate of the last iteration, the head's if layers have their own."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def evaluate(self, batches: Iterable[Batch]) -> tuple[EvalMetrics, EvalMetrics | None]:
        """Metrics of the network as it is now, and of its EMA if there is one, on the batches of all
        processes together.
        """
        networks = [self.model] if self.ema is None else [self.model, self.ema.module]
        found = evaluate(networks, batches, self.config, self.device, self.world)
        return found[0], found[1] if self.ema is not None else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; random numbers depend on `iteration` alone, with no state here."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
        }

    def checkpoint_bytes(self) -> int:
        """A checkpoint's size once the optimizer has made a step: before, the optimizer has no state."""
        networks = [self.model.state_dict()] * (1 if self.ema is None else 2)
        moments = {"sgd": 1, "adamw": 2}[self.config.recipe.optimizer]
        return state_bytes([*networks, [list(self.model.parameters())] * moments])

    def start(self, classes: Sequence[str] | None = None) -> None:
        """Starts from the weights that the configuration names, if it names any; `classes` are the data's
        names, by label.
        """
        initialize_from(self.model, self.config, classes)
        if self.ema is not None:
            self.ema.set(self.model)

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a checkpoint."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def build_mixup(config: RunConfig) -> Mixup:
    """timm's mixup and cutmix by the recipe; it smooths the labels, too."""
    recipe = config.recipe
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=config.model.num_classes,
    )
