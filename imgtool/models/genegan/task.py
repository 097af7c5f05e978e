"""The GeneGAN as a task: a critic update, some times an iteration, and a generator update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.data.pyramid import unpack
from imgtool.models.base import (
    Batch,
    DataInfo,
    Fake,
    Family,
    Foreign,
    Noise,
    Reader,
    Task,
    Update,
)
from imgtool.models.genegan import legacy
from imgtool.models.genegan import losses as formulas
from imgtool.models.genegan.evaluator import GeneganEvaluator
from imgtool.models.genegan.layers import At, BlockConv
from imgtool.models.genegan.losses import Faces
from imgtool.models.genegan.network import Critic, Joiner, Splitter
from imgtool.models.genegan.schema import GRADIENT_PENALTIES, faces_data
from imgtool.models.genegan.updates import CriticUpdate, GeneratorUpdate
from imgtool.models.genegan.vqvae import VqvaeTask
from imgtool.models.genegan.warm_start import from_vqvae
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.images import grid

# What the joiner makes, as (background, object): of A and B with the object u of A.
AU_HAT, B0_HAT, BU, A0 = (0, 0), (1, None), (1, 0), (0, None)


class Networks(nn.Module):
    """The four networks, and what a pass through them gives.

    Args:
        experiment: complete and checked.

    Attributes:
        sizes: of the images that come in.
        scales: of those that come out: the same, but for `multiscale_loss`.
        judged: of those that critics see.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        model, sizes = experiment.model, faces_data(experiment).image_sizes
        top = max(sizes)
        self.multiscale = model.multiscale_loss
        self.scales = sizes
        self.sizes = (top,) if self.multiscale else sizes
        everywhere = not self.multiscale or model.multiscale_critics
        self.judged = sizes if everywhere else (top,)
        heads = [size for size in sizes if size != top] if self.multiscale else []
        self.splitter = Splitter(model, self.sizes)
        self.joiner = Joiner(model, self.sizes, heads)
        self.critic_Ax = Critic(model, self.judged)
        self.critic_Be = Critic(model, self.judged)

    def split(self, Au: Tensor, B0: Tensor, at: At) -> tuple[list[Tensor], list[Tensor]]:
        """Backgrounds A, B and objects x, e of two batches (B, 3, S, S), split by themselves."""
        both = At(at.size, groups=2, track=at.track)
        backgrounds, objects = self.splitter(torch.cat([Au, B0]), both)
        return list(backgrounds.chunk(2)), list(objects.chunk(2))

    def exchange(self, real: Mapping[int, tuple[Tensor, Tensor]], size: int) -> dict[int, Faces]:
        """Bu and A0 at every scale that `size` gives; statistics stay as they are."""
        at = At(size, track=False)
        backgrounds, objects = self.split(*real[size], at)
        made = self.joiner(backgrounds, objects[:1], [BU, A0], at)
        return {s: Faces(*real[s], *both.chunk(2)) for s, both in made.items() if s in self.judged}

    def all_four(
        self, real: Mapping[int, tuple[Tensor, Tensor]], size: int, *, track: bool = True
    ) -> tuple[Tensor, dict[int, Faces]]:
        """The object e of B0, and the four faces at every scale that `size` gives."""
        at = At(size, track=track)
        backgrounds, (x, e) = self.split(*real[size], at)
        made = self.joiner(backgrounds, [x], [AU_HAT, B0_HAT, BU, A0], at)
        faces = {}
        for scale, four in made.items():
            Au_hat, B0_hat, Bu, A0_made = four.chunk(4)
            faces[scale] = Faces(*real[scale], Bu, A0_made, Au_hat, B0_hat)
        return e, faces

    def convolutions(self) -> Iterator[Tensor]:
        """The generator's convolution weights, for the decay; each block's is one of them."""
        for network in (self.splitter, self.joiner):
            for part in network.modules():
                if isinstance(part, BlockConv):
                    yield from part.by_block()
                elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                    yield part.weight


class GeneganTask(Task):
    """Modules: `splitter`, `joiner`, `critic_Ax`, `critic_Be`."""

    monitor = "val_cycle"
    has_best = False  # who exchanges nothing reconstructs best; `imgtool eval-fid` judges

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        self.experiment, self.data = experiment, data
        self.loss = experiment.loss
        self.networks = Networks(experiment)
        self.modules = nn.ModuleDict(dict(self.networks.named_children()))
        self.critic, self.generator = CriticUpdate(self), GeneratorUpdate(self)
        self.shown_size: int = faces_data(experiment).shown_size
        self.data_sizes = faces_data(experiment).image_sizes
        self.sizes_now = self.networks.sizes
        self._weights = formulas.scale_weights(self.loss.scale_weights, self.networks.scales)
        self._iteration = 1

    # What an iteration consists of

    def all_updates(self) -> Sequence[Update]:
        return (self.critic, self.generator)

    def updates(self, iteration: int) -> Sequence[Update]:
        """Critic steps, then one of the generator. Also draws the size of `random` mode."""
        loss, sizes = self.loss, self.networks.sizes
        self._iteration = iteration
        if loss.multi_res_mode == "random":
            # By iterations: critic and generator steps of one share the size.
            noise = Noise(self.experiment.train.seed, step=iteration)
            drawn = torch.randint(len(sizes), (), generator=noise.generator("size"))
            self.sizes_now = (sizes[int(drawn)],)
        bursts = (iteration - 1) % loss.critic_burst_every == 0
        number = loss.critic_burst if bursts else loss.critic_steps
        return (*[self.critic] * number, self.generator)

    def batches_per_iteration(self) -> Fraction:
        loss = self.loss
        more = Fraction(loss.critic_burst - loss.critic_steps, loss.critic_burst_every)
        return 1 + loss.critic_steps + more

    def is_penalised(self, noise: Noise) -> bool:
        """Whether a critic update of this iteration is one with a gradient penalty: the first of
        all is, and each `critic_penalty_every`-th after it.
        """
        before = noise.step - (self._iteration - 1)  # a generator update in every iteration
        return before % self.loss.critic_penalty_every == 0

    def weights(self, terms: Mapping[int, Any], among: Iterable[int]) -> dict[int, float]:
        """Weights of these sizes, as parts of a mean over all of `among`.

        A drawn size stands for all, so that the mean stays the same.
        """
        if self.loss.multi_res_mode == "random":
            return {size: self._weights[size] * len(self.networks.sizes) for size in terms}
        total = sum(self._weights[size] for size in among)
        return {size: self._weights[size] / total for size in terms}

    def real(self, batch: Batch, sizes: Iterable[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Au and B0 by size, float32 (B, 3, S, S) on 0..255: of `sizes` and what comes of them."""
        wanted = {*sizes, *(self.networks.scales if self.networks.multiscale else ())}
        found = unpack(batch["image"], self.data_sizes)
        return {s: pair(image) for s, image in found.items() if s in wanted}

    def compile_targets(self) -> Sequence[nn.Module]:
        # A compiled network has no second derivative (pytorch#91469).
        penalised = self.loss.critic_penalty in GRADIENT_PENALTIES
        return tuple(
            module
            for module in self.modules.values()
            if not (penalised and isinstance(module, Critic))
        )

    def num_graphs(self) -> int:
        """Each size of each network, once for critic and once for generator updates."""
        return 2 * len(self.data_sizes) * len(self.modules)

    def warm_start(self, read: Reader) -> dict[str, Any] | None:
        """Begin with the weights of a VQ-VAE; see `warm_start.from_vqvae`."""
        model = self.experiment.model
        if model.init_vqvae_ckpt is None:
            return None
        generator = {"splitter": self.networks.splitter, "joiner": self.networks.joiner}
        names = read.document(model.init_vqvae_map) if model.init_vqvae_map else None
        return from_vqvae(generator, read.tensors(model.init_vqvae_ckpt), names)

    def from_foreign(self, foreign: Any) -> Foreign:
        """Checkpoints of the earlier PyTorch system; see `legacy.read`."""
        return legacy.read(foreign, dict(self.modules.items()), self.all_updates(), self.data_sizes)

    # Looking at it

    def evaluator(self) -> GeneganEvaluator:
        return GeneganEvaluator(self)

    @torch.no_grad()
    def faces(self, batch: Batch) -> Faces:
        """The six faces of each pair at the shown size, float32 on 0..255."""
        found = unpack(batch["image"], self.data_sizes)
        real = {s: pair(image) for s, image in found.items()}
        _, made = self.networks.all_four(real, self.shown_size, track=False)
        return made[self.shown_size]

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`faces`: a row a pair, Au | B0 | A0 | Bu | Au_hat | B0_hat, at the shown size."""
        faces = self.faces(batch)
        assert faces.Au_hat is not None
        assert faces.B0_hat is not None
        columns = (faces.Au, faces.B0, faces.A0, faces.Bu, faces.Au_hat, faces.B0_hat)
        rows = zip(*(to_uint8(column).cpu() for column in columns), strict=True)
        return {"faces": grid(list(rows))}

    def fakes(self, batch: Batch) -> Mapping[str, Fake]:
        faces = self.faces(batch)
        return {
            "Bu": Fake(to_uint8(faces.Bu), "with"),
            "A0": Fake(to_uint8(faces.A0), "without"),
        }

    def facts(self) -> dict[str, Any]:
        """Trainable parameters (in all and by network), the parts of the bottleneck at the shown
        size (C, h, w), and the multiply-accumulates of one exchange of a pair at that size.
        """
        size = self.shown_size
        parts = dict(self.modules.items())
        with torch.device("meta"):
            twin = Networks(self.experiment).eval()
        side = twin.splitter(torch.empty(1, 3, size, size, device="meta"), At(size))[0].shape[-1]

        def exchange(face: Tensor) -> object:
            return twin.exchange(dict.fromkeys(twin.scales, (face, face)), size)

        return {
            "num_parameters": count_parameters(self.modules),
            **{f"num_parameters_{name}": count_parameters(part) for name, part in parts.items()},
            "background_shape": [self.networks.splitter.num_background, side, side],
            "object_shape": [self.networks.splitter.num_object, side, side],
            "macs_per_exchange": count_macs(exchange, (size, size)),
        }


def pair(image: Tensor) -> tuple[Tensor, Tensor]:
    """Au and B0, float32 (B, 3, S, S), of uint8 rows that take turns (2B, 3, S, S)."""
    return image[0::2].float(), image[1::2].float()


def to_uint8(face: Tensor) -> Tensor:
    """0..255 to the nearest byte."""
    return face.round().clamp(0, 255).to(torch.uint8)


class GeneganFamily(Family):
    """GeneGAN at several sizes."""

    def knows(self, foreign: Any) -> bool:
        """The networks of the earlier PyTorch system."""
        return legacy.knows(foreign)

    def build(self, experiment: Experiment, data: DataInfo) -> GeneganTask | VqvaeTask:
        """The task with fresh weights; of a VQ-VAE with its trunk where the config says so."""
        if experiment.model.vqvae:
            return VqvaeTask(experiment, data)
        return GeneganTask(experiment, data)
