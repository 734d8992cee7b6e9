"""How the images of an iteration are shared among processes and taken in turns, so that it is the same
iteration on any number of them.

A position is an image's place in the global batch. Groups of `group` successive positions are normalized by
BN and mixed together; images 2k and 2k + 1 are a pair that mixup blends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roadmap.config import RunConfig
from roadmap.errors import ConfigError, config_error


@dataclass(frozen=True)
class Part:
    """Images of one group that lie side by side in a micro-batch: its slice from `start` to `end`, at these
    `positions`.
    """

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

    def parts(self, rank: int, turn: int) -> Iterator[Part]:
        """What the micro-batch of a process in its `turn` is made of, in order.

        If `paired`, a pair's images lie symmetrically to the middle of their part: timm's mixup blends a
        batch with itself reversed.
        """
        first = (
            (turn * self.world + rank) * self.micro
            if self.together
            else rank * self.share + turn * self.micro
        )
        for group in range(first // self.group, (first + self.micro - 1) // self.group + 1):
            low, high = max(first, group * self.group), min(first + self.micro, (group + 1) * self.group)
            positions = (
                (*range(low, high, 2), *reversed(range(low + 1, high, 2)))
                if self.paired
                else tuple(range(low, high))
            )
            yield Part(group, low - first, high - first, positions)

    def positions(self, rank: int, turn: int) -> list[int]:
        """The positions of a micro-batch's images, in its order."""
        return [position for part in self.parts(rank, turn) for position in part.positions]


def plan_batches(config: RunConfig, world: int = 1) -> BatchPlan:
    """How `world` processes share the configuration's global batch; ConfigError says which value keeps them
    from it.
    """
    recipe, system = config.recipe, config.system
    group, share = recipe.group, recipe.global_batch // world
    bn = config.model.block.norm.kind == "bn"

    def refuse(message: str) -> ConfigError:
        return config_error(f"recipe.global_batch {recipe.global_batch} on {world} processes:", message)

    if share * world != recipe.global_batch:
        raise refuse("does not divide evenly; choose a number of processes that divides it")
    micro = system.micro_batch or (group // world if system.sync_bn else min(group, share))
    if not micro or share % micro:
        raise refuse(f"leaves each {share} images, no multiple of system.micro_batch {micro}")
    together = micro * world if system.sync_bn else micro
    if bn and together != group:
        how = f"recipe.local_batch {group} is what BN is to see at once, and it would see {together}"
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
        raise refuse(f"{how}; {', or '.join(fixes)}")
    if recipe.mixes and micro % 2:
        raise refuse(f"has mixup pair the images of a micro-batch of {micro}; it must be even")
    return BatchPlan(world, micro, share // micro, group, recipe.mixes, system.sync_bn)
