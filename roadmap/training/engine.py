"""A network in training: what happens in an iteration, in an evaluation, and what a checkpoint must hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from blocks.model import Network, build_model
from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.errors import config_error
from roadmap.rng import CHECK, ERASE, INIT, MIX, STEP, reseed
from roadmap.training.checkpoint import state_bytes
from roadmap.training.compiled import CompilerFailed, check_gradients, compile_network
from roadmap.training.device import oom_hint, oom_suggestions
from roadmap.training.device_transforms import DeviceTransform
from roadmap.training.distributed import Distributed
from roadmap.training.initial_weights import initialize_from
from roadmap.training.metrics import EvalMetrics, accumulator_dtype, batch_metrics
from roadmap.training.optim import build_optimizer, build_schedule

logger = logging.getLogger(__name__)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A network, its optimizer, schedule and moving average; `iteration` counts the optimizer's steps.

    All processes hold the same, but for the running statistics of BN, of which the first process's count.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        iterations_per_epoch: int,
        world: Distributed | None = None,
    ) -> None:
        recipe, system = config.recipe, config.system
        self.config, self.device, self.iteration = config, device, 0
        self.between_iterations = True  # or a part of the batch has changed running statistics already
        self.world = world or Distributed()
        self.plan: BatchPlan = plan_batches(config, self.world.size)
        reseed(INIT, config.seed)
        self.model: Network = build_model(config.model).to(device).to(memory_format=torch.channels_last)
        self.model.set_grad_checkpointing(system.grad_checkpointing)
        if system.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.optimizer = build_optimizer(recipe, self.model)
        self.schedule = build_schedule(recipe, self.optimizer, iterations_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema is not None else None
        self.finish = DeviceTransform(config, device) if recipe.pipeline == "tensor" else None
        self.erase = (
            RandomErasing(recipe.random_erasing, mode=recipe.erase_mode, device=device)
            if recipe.random_erasing
            else None
        )
        self.mix = build_mixup(config) if recipe.mixes else None
        # the network as training calls it
        self.averaged = self._distributed() if self.world.size > 1 else None
        self.forward: Any = self.averaged or self.model
        if system.compile:
            self.forward = compile_network(self.forward)

    def check_compiled(self) -> dict[str, Any] | None:
        """Compares what PyTorch has compiled with the eager network, on a micro-batch of noise; the report is
        for provenance.json.

        Where they differ, or nothing could be compiled, `system.compile: try` trains the eager network, with
        a warning, and `true` is a ConfigError. All processes decide alike. None where nothing is compiled.
        """
        if not self.config.system.compile:
            return None
        eager, found, problem = self.averaged or self.model, None, None
        with oom_hint(f"{self.plan.micro} images", oom_suggestions(self.config, self.plan.micro)):
            try:
                found = check_gradients(
                    self.model, eager, self.forward, *self._noise(), PRECISIONS[self.config.recipe.precision]
                )
                problem = f"compiled gradients are wrong: {found}" if found.wrong else None
            except CompilerFailed as error:
                problem = f"PyTorch cannot compile the network: {error}"
        problem = next(filter(None, self.world.gather(problem)), None)
        if problem is not None:
            problem = (
                f"{problem} (PyTorch {torch.__version__}, {self.config.recipe.precision}, on"
                f" {self.device.type})"
            )
            if self.config.system.compile != "try":
                ways = (
                    "--set system.compile=false trains the eager network, system.compile=try does so where"
                    " the compiled one is wrong"
                )
                raise config_error("system.compile:", f"{problem}; {ways}")
            logger.warning("%s; the eager network is trained", problem)
            self.forward = eager
        return {"trained": "compiled" if problem is None else "eager", "problem": problem} | (
            found.report() if found else {}
        )

    def _noise(self) -> tuple[Tensor, Tensor]:
        """Images and labels of a micro-batch, with the shapes, types and memory format that training has."""
        config, images = self.config, self.plan.micro
        reseed(CHECK, self.world.rank)
        size, channels = config.data.image_size, config.model.in_chans
        noise = torch.randn(images, channels, size, size, device=self.device)
        labels = torch.randint(config.model.num_classes, (images,), device=self.device)
        return noise.contiguous(memory_format=torch.channels_last), labels

    def _distributed(self) -> DistributedDataParallel:
        """The network with its gradients averaged over the processes."""
        return DistributedDataParallel(
            self.model, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def step(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """One iteration on this process's micro-batches; returns the whole batch's loss, on the device."""
        self.schedule.step_update(self.iteration)
        if not self.model.training:  # to tell hundreds of modules takes a millisecond
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for turn, (images, labels) in enumerate(batches):
            self.between_iterations = False
            with self._averaging(turn):
                loss = self._loss(images, labels, turn) / self.plan.accumulation
                torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach()
        self._update()
        self.between_iterations = True
        return self.world.mean(total)

    def _averaging(self, turn: int) -> AbstractContextManager[Any]:
        """Gradients are averaged over the processes once an iteration, in the last turn."""
        last = turn == self.plan.accumulation - 1
        return nullcontext() if self.averaged is None or last else self.averaged.no_sync()

    def _loss(self, images: Tensor, labels: Tensor, turn: int) -> Tensor:
        images, labels = self._augment(images, labels, turn)
        # mixed labels are smoothed already
        smoothing = 0.0 if self.mix is not None else self.config.recipe.label_smoothing
        # drop path draws for the micro-batch as a whole
        reseed(STEP, self.config.seed, self.iteration, self.world.rank, turn)
        with autocast(self.config, self.device):
            return functional.cross_entropy(self.forward(images), labels, label_smoothing=smoothing)

    def _augment(self, images: Tensor, labels: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Changes each image and mixes each group with random numbers of its own, so that both are the same
        on any world.
        """
        seed, rank = self.config.seed, self.world.rank
        positions = self.plan.positions(rank, turn)
        if self.finish is not None:
            images = self.finish(images, self.iteration, positions)
        if self.erase is not None:
            for image, position in zip(images, positions, strict=True):
                reseed(ERASE, seed, self.iteration, position)
                self.erase(image)  # in place
        if self.mix is not None:
            mixed = []
            for part in self.plan.parts(rank, turn):
                reseed(MIX, seed, self.iteration, part.group)
                images[part.start : part.end], soft = self.mix(
                    images[part.start : part.end], labels[part.start : part.end]
                )
                mixed.append(soft)
            labels = torch.cat(mixed)
        return images, labels

    def _update(self) -> None:
        clip = self.config.recipe.clip_grad
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.iteration)

    def lr(self) -> float:
        """The learning rate of the last iteration, the head's if layers have their own."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> EvalMetrics:
        """Scores of the network as it is now, on this process's batches and those of the others together."""
        return self._evaluate(self.model, batches)

    def evaluate_ema(self, batches: Iterable[tuple[Tensor, Tensor]]) -> EvalMetrics | None:
        """The scores of the moving average, or None where there is none."""
        return self._evaluate(self.ema.module, batches) if self.ema is not None else None

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> EvalMetrics:
        self.world.sync_buffers(model)
        model.eval()
        totals = torch.zeros(4, device=self.device, dtype=accumulator_dtype(self.device))
        for images, labels in batches:
            with autocast(self.config, self.device):
                logits = model(images).float()
            totals += batch_metrics(logits, labels)
        scores = EvalMetrics.of(self.world.sum(totals))
        if not scores.images:
            raise config_error(
                f"dataset '{self.config.data.dataset}'", "has no validation image that can be read"
            )
        return scores

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
        """A checkpoint's size once the optimizer has made a step: before, it has no state of its own."""
        networks = [self.model.state_dict()] * (1 if self.ema is None else 2)
        return state_bytes(
            [
                *networks,
                [list(self.model.parameters())] * {"sgd": 1, "adamw": 2}[self.config.recipe.optimizer],
            ]
        )

    def start(self, classes: Sequence[str] | None = None) -> None:
        """Begins from the weights that the configuration names, if it names any; `classes` are the data's
        names, by label.
        """
        initialize_from(self.model, self.config, classes)
        if self.ema is not None:
            self.ema.set(self.model)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The recipe's precision."""
    dtype = PRECISIONS[config.recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def build_mixup(config: RunConfig) -> Mixup:
    """timm's mixup and cutmix as the recipe wants them; it smooths the labels, too."""
    recipe = config.recipe
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=config.model.num_classes,
    )
