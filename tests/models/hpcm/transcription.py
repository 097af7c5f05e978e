"""HPCM as its published code computes it, from the description: full-grid masks, boolean gathers.

Networks are a dict of tensors and calls of torch.nn.functional. Nothing of imgtool is used. Only
sizes that the published code takes: windows divide the grids (multiples of 256 with windows
4, 8, 8).
"""

import math

import torch
import torch.nn.functional as F

GROUPS = 8
# (row, column) phases of the eight channel groups, as the description lists them.
S2_PHASES = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 0))  # of y, stride 2
S1_PHASES = ((0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1))  # of y_s2, stride 2
WRONG_S1 = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))  # of y, stride 4
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
S2_STEPS = ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
TILES = (
    ((0, 0), (2, 2)), ((0, 2), (2, 0)), ((1, 1), (3, 3)), ((1, 3), (3, 1)),
    ((0, 1), (2, 3)), ((0, 3), (2, 1)), ((1, 0), (3, 2)), ((1, 2), (3, 0)),
)  # fmt: skip
S3_STEPS = (
    (2, 4, 6, 0, 3, 5, 7, 1), (3, 5, 7, 1, 2, 4, 6, 0), (4, 6, 0, 2, 5, 7, 1, 3),
    (5, 7, 1, 3, 4, 6, 0, 2), (6, 0, 2, 4, 7, 1, 3, 5), (7, 1, 3, 5, 6, 0, 2, 4),
)  # fmt: skip


# Masks: bool (M, h, w) -----------------------------------------------------------------------


def tiled(height, width, tile):
    """A pattern of cells repeated over a grid of any size."""
    repeats = (-(-height // len(tile)), -(-width // len(tile[0])))
    return torch.tensor(tile).repeat(*repeats)[:height, :width].bool()


def cells(height, width, period, on):
    tile = [[int((row, col) in on) for col in range(period)] for row in range(period)]
    return tiled(height, width, tile)


def by_chunk(patterns, channels):
    """One pattern a channel chunk, chunks of equal length."""
    stacked = torch.stack(list(patterns))
    return stacked.repeat_interleave(channels // len(stacked), dim=0)


def phase_mask(phases, period, channels, height, width):
    return by_chunk([cells(height, width, period, {p}) for p in phases], channels)


def s1_steps(channels, height, width):
    """The two steps of the coarsest grid: complementary checkerboards on two halves."""
    on = cells(height, width, 2, {(0, 0), (1, 1)})
    return [by_chunk([on, ~on], channels), by_chunk([~on, on], channels)]


def s2_steps(channels, height, width):
    phases = [cells(height, width, 2, {phase}) for phase in QUARTERS]
    return [by_chunk([phases[k] for k in step], channels) for step in S2_STEPS]


def s3_steps(channels, height, width, merged=1):
    """The six steps of the finest grid; `merged` of them at a time are coded as one."""
    patterns = [cells(height, width, 4, set(tile)) for tile in TILES]
    steps = [by_chunk([patterns[k] for k in step], channels) for step in S3_STEPS]
    pairs = [steps[i : i + merged] for i in range(0, len(steps), merged)]
    return [torch.stack(pair).any(dim=0) for pair in pairs]


# Boolean gather and scatter ------------------------------------------------------------------


def gather(full, mask, height, width):
    """Values under a mask, in C order, as (B, M, height, width)."""
    batch = full.shape[0]
    return full.masked_select(mask.to(full.device)).view(batch, full.shape[1], height, width)


def scatter(small, mask):
    """A zero tensor with the values of `small`, in C order, under the mask."""
    batch = small.shape[0]
    full = small.new_zeros(batch, *mask.shape)
    return full.masked_scatter(mask.to(small.device).expand_as(full), small)


def s2_hyper(hyper, legacy):
    """Hyperprior parameters of the middle grid, zero where the coarsest grid's values go.

    Args:
        hyper: (B, M, h, w) on the finest grid.
        legacy: gather under the published code's wrong mask, scatter under the right one.
    """
    _, channels, height, width = hyper.shape
    on_s2 = phase_mask(S2_PHASES, 2, channels, height, width)
    half = (height // 2, width // 2)
    is_s1 = phase_mask(S1_PHASES, 2, channels, *half)
    if not legacy:
        return gather(hyper, on_s2, *half) * ~is_s1
    wrong = on_s2 & ~phase_mask(WRONG_S1, 4, channels, height, width)
    return scatter(hyper.masked_select(wrong).view(hyper.shape[0], -1), ~is_s1)


class Partition:
    """Every step's values packed, and put together again, as the published code does it.

    Masks of the two coarser grids are made at every call; those of the finest are kept as whole
    float tensors, by size.
    """

    def __init__(self):
        self.kept = {}

    def __call__(self, y):
        """y (B, M, h, w) -> (what each of the eleven steps writes, y again)."""
        channels, height, width = y.shape[1:]
        half, quarter = (height // 2, width // 2), (height // 4, width // 4)
        on_s2 = phase_mask(S2_PHASES, 2, channels, height, width)
        on_s1 = phase_mask(S1_PHASES, 2, channels, *half)
        y_s2 = gather(y, on_s2, *half)
        y_s1 = gather(y_s2, on_s1, *quarter)
        if y.shape not in self.kept:
            finest = s3_steps(channels, height, width)
            self.kept[y.shape] = [mask.expand_as(y).float().contiguous() for mask in finest]
        grids = (
            (y_s1, [m.expand_as(y_s1).float() for m in s1_steps(channels, *quarter)], 2, on_s1),
            (y_s2, [m.expand_as(y_s2).float() for m in s2_steps(channels, *half)], 4, on_s2),
            (y, self.kept[y.shape], 8, None),
        )
        written, known = [], torch.zeros_like(y_s1)
        for values, masks, chunks, step in grids:
            for mask in masks:
                written.append(sum((values * mask).chunk(chunks, dim=1)))
                known = known + written[-1].repeat(1, chunks, 1, 1) * mask
            if step is not None:
                known = scatter(known, step)
        return written, known


# Layers --------------------------------------------------------------------------------------


def residual(p, name, x):
    """Partial 3x3 on the first channels, or depthwise 3x3; then two 1x1 with LeakyReLU."""
    weight, bias = p[f"{name}.spatial.weight"], p[f"{name}.spatial.bias"]
    if weight.shape[1] == 1 and weight.shape[0] == x.shape[1]:
        h = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    else:
        first = weight.shape[0]
        h = torch.cat([F.conv2d(x[:, :first], weight, bias, padding=1), x[:, first:]], dim=1)
    h = F.leaky_relu(F.conv2d(h, p[f"{name}.grow.weight"], p[f"{name}.grow.bias"]), 0.01)
    return x + F.conv2d(h, p[f"{name}.shrink.weight"], p[f"{name}.shrink.bias"])


def conv1x1(p, name, x):
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"])


def down(p, name, x):
    """Kernel 4 overlaps by one pixel on each side, kernel 2 does not overlap."""
    weight = p[f"{name}.weight"]
    return F.conv2d(x, weight, p[f"{name}.bias"], stride=2, padding=weight.shape[-1] // 2 - 1)


def up(p, name, x):
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=weight.shape[-1] // 2 - 1)


def blocks(p, name, x):
    number = 0
    while f"{name}.{number}.grow.weight" in p:
        x = residual(p, f"{name}.{number}", x)
        number += 1
    assert number, f"no blocks {name}"
    return x


def windows(x, side, heads):
    """(B, C, h, w) as (B, windows, heads, side * side, C / heads)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, heads, channels // heads, height // side, side, width // side, side)
    x = x.permute(0, 3, 5, 1, 4, 6, 2)
    return x.reshape(batch, -1, heads, side * side, channels // heads)


def attend(p, name, psi, context, side, heads):
    """Windows of psi ask, the context answers; psi alone goes through the last 1x1."""
    batch, channels, height, width = psi.shape
    q = windows(conv1x1(p, f"{name}.q", psi), side, heads)
    k = windows(conv1x1(p, f"{name}.k", context), side, heads)
    v = windows(conv1x1(p, f"{name}.v", context), side, heads)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(channels // heads), dim=-1)
    mixed = weights @ v
    mixed = mixed.view(
        batch, height // side, width // side, heads, side, side, channels // heads
    ).permute(0, 3, 6, 1, 4, 2, 5)
    return mixed.reshape(psi.shape) + conv1x1(p, f"{name}.out", psi)


# Entropy model -------------------------------------------------------------------------------

BETA = 1.5


class Cumulative(torch.autograd.Function):
    """F(v) of a generalised Gaussian of scale 1, and its density as the gradient."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        power = v.abs() ** BETA
        inner = torch.special.gammainc(torch.full_like(v, 1 / BETA), power)
        return 0.5 * (1 + v.sign() * inner)

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad * BETA / (2 * math.gamma(1 / BETA)) * torch.exp(-(v.abs() ** BETA))


class LowerBound(torch.autograd.Function):
    """max(x, bound); a gradient that pushes up passes below the bound too."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def likelihood(value, scale):
    """Probability of the bin of width 1 around `value`."""
    scale = LowerBound.apply(scale, 0.12)
    p = Cumulative.apply((value + 0.5) / scale) - Cumulative.apply((value - 0.5) / scale)
    return LowerBound.apply(p, 1e-9)


def search_by_broadcasting(alpha, table):
    """Index of the smallest table entry that is not below alpha, by comparing with 59 of them."""
    smaller = table[:-1].view(*([1] * alpha.dim()), -1) < alpha.unsqueeze(-1)
    return smaller.sum(dim=-1)


def ste_round(x):
    return x + (torch.round(x) - x).detach()


# Weights -------------------------------------------------------------------------------------


def weights_of(state):
    """The weights of imgtool's HPCM, renamed and reordered for Reference.

    Args:
        state: state dict of the module; tensors are taken as they are.
    """
    p = {name: state[name] for name in ("means_hyper", "scales_hyper")}
    for net, first_is_block in (("g_a", 0), ("g_s", 0), ("h_a", 1), ("h_s", 0)):
        take_transform(p, state, net, first_is_block)
    for net, ours in (("g_ep12", "coarse"), ("g_ep3", "fine")):
        take_blocks(p, state, f"{net}.branch1", f"context.{ours}.before", 0)
        last = take_blocks(p, state, f"{net}.branch2", f"context.{ours}.after", 0)
        take(p, state, f"{net}.out", f"context.{ours}.after.{last}")
    num_steps = sum(key.startswith("context.factors") for key in state)
    for number in range(num_steps):
        p[f"adaptive.{number}"] = state[f"context.factors.{number}"]
    for scale, first, count in ((1, 0, 1), (2, 1, 3), (3, 4, num_steps - 4)):
        for number in range(count):
            # The i-th step of a finer grid reads entry i - 1 of its list.
            entry = 0 if scale == 1 else (number - 1) % count
            take(p, state, f"adaptor_s{scale}.{entry}", f"context.adaptors.{first + number}")
    for number in range(2):
        take(p, state, f"context_net.{number}", f"context.finer.{number}")
    for scale in (1, 2, 3):
        take_attention(p, state, f"attn_s{scale}", f"context.attention.{scale - 1}")
    return p


def take(p, state, name, ours):
    for kind in ("weight", "bias"):
        p[f"{name}.{kind}"] = state[f"{ours}.{kind}"]


def take_blocks(p, state, name, ours, first):
    """Blocks `first`, `first` + 1 ... of a sequence; the number of what follows them."""
    number = first
    while f"{ours}.{number}.expand.weight" in state:
        block, theirs = f"{name}.{number - first}", f"{ours}.{number}"
        partial = f"{theirs}.spatial.conv.weight" in state
        take(p, state, f"{block}.spatial", f"{theirs}.spatial{'.conv' if partial else ''}")
        take(p, state, f"{block}.grow", f"{theirs}.expand")
        take(p, state, f"{block}.shrink", f"{theirs}.reduce")
        number += 1
    return number


def take_transform(p, state, net, first_is_block):
    kind = "down" if net.endswith("_a") else "up"
    number = take_blocks(p, state, f"{net}.res0", net, 0)
    stage = 0
    while f"{net}.{number}.weight" in state:
        take(p, state, f"{net}.{kind}{stage}", f"{net}.{number}")
        number = take_blocks(p, state, f"{net}.res{stage + first_is_block}", net, number + 1)
        stage += 1


def take_attention(p, state, name, ours):
    """Pairs of 1x1 convolutions are one there."""
    for pair, joint in ((("q", "out"), "query_out"), (("k", "v"), "key_value")):
        for kind in ("weight", "bias"):
            key = f"{ours}.{joint}.{kind}"
            if key in state:
                halves = state[key].chunk(2, dim=0)
                p |= {f"{name}.{one}.{kind}": half for one, half in zip(pair, halves, strict=True)}


# The codec -----------------------------------------------------------------------------------


class Reference:
    """The codec.

    Args:
        p: name -> tensor, named as the functions of this file ask for them.
        legacy: the published code's misplaced hyperprior of the middle grid.
        window_sides, heads: of the attention; None without it.
        merged: steps of the finest grid that are coded at a time.
    """

    def __init__(self, p, *, legacy, window_sides=(4, 8, 8), heads=32, merged=1):
        self.p, self.legacy, self.merged = p, legacy, merged
        self.window_sides, self.heads = window_sides, heads

    def g_a(self, x):
        for stage in range(3):
            x = blocks(self.p, f"g_a.res{stage}", down(self.p, f"g_a.down{stage}", x))
        return down(self.p, "g_a.down3", x)

    def g_s(self, y):
        for stage in range(3):
            y = blocks(self.p, f"g_s.res{stage}", up(self.p, f"g_s.up{stage}", y))
        return up(self.p, "g_s.up3", y)

    def h_a(self, y):
        y = down(self.p, "h_a.down0", blocks(self.p, "h_a.res0", y))
        return down(self.p, "h_a.down1", blocks(self.p, "h_a.res1", y))

    def h_s(self, z):
        z = up(self.p, "h_s.up1", blocks(self.p, "h_s.res0", up(self.p, "h_s.up0", z)))
        return blocks(self.p, "h_s.res1", z)

    def entropy_parameters(self, scale, step, order, context, y_hat):
        """psi of a step (before attention): scales and means, (B, 2M, ...)."""
        net = "g_ep3" if scale == 3 else "g_ep12"
        h = conv1x1(self.p, f"adaptor_s{scale}.{order}", torch.cat([context, y_hat], dim=1))
        h = blocks(self.p, f"{net}.branch1", h) * self.p[f"adaptive.{step - 2}"]
        return conv1x1(self.p, f"{net}.out", blocks(self.p, f"{net}.branch2", h))

    def next_context(self, scale, psi, context):
        if self.window_sides is None:
            return psi
        # The published code wants grids of whole windows; a grid below one is a window here.
        side = min(self.window_sides[scale - 1], *psi.shape[2:])
        return attend(self.p, f"attn_s{scale}", psi, context, side, self.heads)

    def quantise(self, scale, rest, scales, mask):
        """A step's residuals as the decoder knows them; whoever codes them does so here."""
        return ste_round(rest)

    def code_scale(self, scale, masks, first_step, state, psi):
        """The steps of one grid. `state` holds y, y_hat, residuals and scales of this grid."""
        context = state.pop("context")
        for number, mask in enumerate(masks):
            step = first_step + number
            if psi is None:
                # The lists of the two finer grids are indexed with i - 1, i from 0.
                order = 0 if scale == 1 else (number - 1) % len(masks)
                psi = self.entropy_parameters(scale, step, order, context, state["y_hat"])
                following = self.next_context(scale, psi, context)
            else:
                following = context
            scales, means = psi.chunk(2, dim=1)
            mask = mask.to(psi)
            mean, scale_hat = means * mask, scales * mask
            if state["y"] is not None:
                rest = (state["y"] - means) * mask
                state["rest"] = state["rest"] + rest
                state["scales"] = state["scales"] + scale_hat
            else:
                rest = None
            quantised = self.quantise(scale, rest, scale_hat, mask)
            state["y_hat"] = state["y_hat"] + quantised + mean
            context, psi = following, None
        return context

    def forward(self, x, noise=None):
        """x (B, 3, H, W) on 0..1 -> dict of x_hat, y_hat, likelihoods and latents.

        Args:
            noise: like -> U(-.5, .5), for training; None rates rounded residuals.
        """
        y = self.g_a(x)
        z = self.h_a(y)
        mean_z, scale_z = self.p["means_hyper"], self.p["scales_hyper"]
        z_rest = z - mean_z
        z_hat = ste_round(z_rest) + mean_z
        rated_z = z_rest + noise(z) if noise else torch.round(z_rest)
        coded = self.code(y, self.h_s(z_hat))
        rated = coded["rest"] + noise(y) if noise else torch.round(coded["rest"])
        return {
            "x_hat": self.g_s(coded["y_hat"]),
            "y_hat": coded["y_hat"],
            "likelihood_y": likelihood(rated, coded["scales"]),
            "likelihood_z": likelihood(rated_z, scale_z),
            "latents": coded["latents"],
        }

    def code(self, y, hyper):
        """All steps. hyper (B, 2M, h, w): scales, then means; y is None in a decoder."""
        channels, height, width = hyper.shape[1] // 2, *hyper.shape[2:]
        half, quarter = (height // 2, width // 2), (height // 4, width // 4)
        on_s2 = phase_mask(S2_PHASES, 2, channels, height, width)
        on_s1 = phase_mask(S1_PHASES, 2, channels, *half)
        hyper_scales, hyper_means = hyper.chunk(2, dim=1)

        def to_s1(full):
            return gather(gather(full, on_s2, *half), on_s1, *quarter)

        psi = torch.cat([to_s1(hyper_scales), to_s1(hyper_means)], dim=1)
        state = self.fresh(psi)
        state["y"] = None if y is None else to_s1(y)
        context = self.code_scale(1, s1_steps(channels, *quarter), 1, state, psi)
        latents = [state["y_hat"]]

        hyper_s2 = [s2_hyper(part, self.legacy) for part in (hyper_scales, hyper_means)]
        state = self.climb(state, on_s1, context, hyper_s2, 0)
        state["y"] = None if y is None else gather(y, on_s2, *half)
        before = state["y_hat"]
        context = self.code_scale(2, s2_steps(channels, *half), 3, state, None)
        latents.append(state["y_hat"] - before)

        hyper_s3 = [part * ~on_s2 for part in (hyper_scales, hyper_means)]
        state = self.climb(state, on_s2, context, hyper_s3, 1)
        state["y"] = y
        before = state["y_hat"]
        masks = s3_steps(channels, height, width, self.merged)
        self.code_scale(3, masks, 6, state, None)
        latents.append(state["y_hat"] - before)
        return {**state, "latents": latents}

    @staticmethod
    def fresh(context):
        zeros = torch.zeros_like(context.chunk(2, dim=1)[0])
        return {"y_hat": zeros, "rest": zeros, "scales": zeros, "context": context}

    def climb(self, state, mask, context, hyper, number):
        """To the next finer grid: what is known is scattered there, the hyperprior fills the rest."""
        halves = [scatter(half, mask) for half in context.chunk(2, dim=1)]
        filled = torch.cat([a + b for a, b in zip(halves, hyper, strict=True)], dim=1)
        summed = ("y_hat", "rest", "scales") if state["y"] is not None else ("y_hat",)
        known = {key: scatter(state[key], mask) for key in summed}
        return {**known, "context": conv1x1(self.p, f"context_net.{number}", filled)}
