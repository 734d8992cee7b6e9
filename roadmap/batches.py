"""How processes and gradient accumulation steps divide the images of an iteration, which is the same on
any number of them.

A position is an image's index in the global batch. Groups of `group` successive positions are normalized by
BN and mixed together; images 2k and 2k + 1 are a pair that mixup blends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roadmap.config import RunConfig
from roadmap.errors import ConfigError, config_error


@dataclass(frozen=True)
class GroupSlice:
    """The images of one group in a micro-batch: `start` to `end` of the micro-batch, at these `positions`."""

    group: int
    start: int
    end: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class BatchPlan:
    """Each of `world` processes takes `micro` images at a time, `accumulation` times an iteration.

    `paired` is for mixup, `together` for a BN that sees a group on all processes at once.
    """

    world: int
    micro: int
    accumulation: int
    group: int
    paired: bool = False
    together: bool = False

    @property
    def share(self) -> int:
        """A process's images of an iteration."""
        return self.micro * self.accumulation

    def slices(self, rank: int, step: int) -> Iterator[GroupSlice]:
        """The groups in the micro-batch of a process in one gradient accumulation step, in order.

        If `paired`, a pair's images lie symmetrically about the middle of their slice: timm's mixup blends a
        batch with itself reversed.
        """
        first = (
            (step * self.world + rank) * self.micro
            if self.together
            else rank * self.share + step * self.micro
        )
        for group in range(first // self.group, (first + self.micro - 1) // self.group + 1):
            low, high = max(first, group * self.group), min(first + self.micro, (group + 1) * self.group)
            positions = (
                (*range(low, high, 2), *reversed(range(low + 1, high, 2)))
                if self.paired
                else tuple(range(low, high))
            )
            yield GroupSlice(group, low - first, high - first, positions)

    def positions(self, rank: int, step: int) -> list[int]:
        """The positions of a micro-batch's images, in its order."""
        return [position for part in self.slices(rank, step) for position in part.positions]


def plan_batches(config: RunConfig, world: int = 1) -> BatchPlan:
    """How `world` processes share the configuration's global batch; ConfigError names the value
    that prevents it.
    """
    recipe, system = config.recipe, config.system
    group, share = recipe.group, recipe.global_batch // world
    bn = config.has_batch_norm

    def refusal(message: str) -> ConfigError:
        return config_error(
            f"recipe.global_batch {recipe.global_batch} on {world} process{'es' * (world > 1)}:", message
        )

    if share * world != recipe.global_batch:
        raise refusal("does not divide evenly; choose a number of processes that divides it")
    micro = system.micro_batch or (group // world if system.sync_bn else min(group, share))
    if not micro or share % micro:
        raise refusal(f"leaves each {share} images, no multiple of system.micro_batch {micro}")
    together = micro * world if system.sync_bn else micro
    if bn and together != group:
        problem = f"BN would normalize over {together} images, not over the {group} of recipe.local_batch"
        fixes = [f"--set recipe.local_batch={together} makes that the recipe"]
        if share % group == 0:
            fixes.append(
                f"--set system.micro_batch={group} --set system.sync_bn=false takes as many at a time"
            )
        elif not system.sync_bn and group % world == 0:
            fixes.append(
                f"--set system.sync_bn=true --set system.micro_batch={group // world} has the processes share"
                " their statistics"
            )
        raise refusal(f"{problem}; {', or '.join(fixes)}")
    if recipe.mixes and micro % 2:
        raise refusal(f"has mixup pair the images of a micro-batch of {micro}; it must be even")
    return BatchPlan(world, micro, share // micro, group, recipe.mixes, system.sync_bn)
