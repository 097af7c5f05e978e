"""The step of the reference, written down plainly: separate calls, no sharing, no tricks.

Networks are lists of tensors and calls of torch.nn.functional. Nothing of imgtool is used.
"""

import torch
import torch.nn.functional as F


class PlainNorm:
    """One batch norm a size: [weight, bias, running_mean, running_var]."""

    def __init__(self, by_size):
        self.by_size = by_size

    def __call__(self, x, size, keep):
        weight, bias, mean, var = self.by_size[size]
        if keep:
            return F.batch_norm(x, mean, var, weight, bias, True, 0.01, 1e-3)
        return F.batch_norm(x, None, None, weight, bias, True, 0.01, 1e-3)


def splitter(p, norms, image, size, keep, num_object):
    h = F.leaky_relu(F.conv2d(image / 255, p["conv0"], stride=2, padding=1), 0.2)
    h = F.leaky_relu(norms["s1"](F.conv2d(h, p["conv1"], stride=2, padding=1), size, keep), 0.2)
    h = F.leaky_relu(norms["s2"](F.conv2d(h, p["conv2"], padding=1), size, keep), 0.2)
    if size > 64:
        h = F.leaky_relu(norms["s3"](F.conv2d(h, p["conv3"], stride=2, padding=1), size, keep), 0.2)
    return h[:, :-num_object], h[:, -num_object:]


def joiner(p, norms, background, thing, size, keep):
    h = torch.cat([background, thing], dim=1)
    for number in range(2 if size <= 64 else 3):
        h = F.conv_transpose2d(h, p[f"up{number}"], stride=2, padding=1)
        h = F.relu(norms[f"j{number}"](h, size, keep))
    h = F.conv2d(h, p["rgb"], padding=1) + p["bias"][None, :, None, None]
    return (torch.tanh(h) + 1) * 255 / 2


def critic(p, norms, image, size):
    h = F.leaky_relu(F.conv2d(image / 255, p["conv0"], stride=2, padding=1), 0.2)
    for number in (1, 2, 3):
        h = F.conv2d(h, p[f"conv{number}"], stride=2, padding=1)
        h = F.leaky_relu(norms[f"c{number}"](h, size, True), 0.2)
    h = F.adaptive_avg_pool2d(h, 4).flatten(1)
    return F.linear(h, p["fc.weight"], p["fc.bias"])[:, 0]


class Reference:
    """Splitter, joiner and critics with the weights of a task, as plain tensors."""

    def __init__(self, state, sizes, num_object):
        self.sizes, self.num_object = sizes, num_object

        def leaf(name):
            return state[name].detach().clone().requires_grad_(True)

        def norm(prefix):
            return PlainNorm(
                {
                    s: [
                        leaf(f"{prefix}.norm.norms.{s}.weight"),
                        leaf(f"{prefix}.norm.norms.{s}.bias"),
                        state[f"{prefix}.norm.norms.{s}.running_mean"].clone(),
                        state[f"{prefix}.norm.norms.{s}.running_var"].clone(),
                    ]
                    for s in sizes
                }
            )

        deep = any(size > 64 for size in sizes)
        self.s = {f"conv{i}": leaf(f"splitter.layers.{i}.conv.weight") for i in range(3 + deep)}
        self.j = {f"up{i}": leaf(f"joiner.layers.{i}.conv.weight") for i in range(2 + deep)}
        self.j |= {"rgb": leaf("joiner.to_rgb.weight"), "bias": leaf("joiner.bias")}
        self.norms = {f"s{i}": norm(f"splitter.layers.{i}") for i in range(1, 3 + deep)}
        self.norms |= {f"j{i}": norm(f"joiner.layers.{i}") for i in range(2 + deep)}
        self.d, self.dn = {}, {}
        for name in ("critic_Ax", "critic_Be"):
            self.d[name] = {f"conv{i}": leaf(f"{name}.layers.{i}.conv.weight") for i in range(4)}
            self.d[name]["fc.weight"] = leaf(f"{name}.judge.weight")
            self.d[name]["fc.bias"] = leaf(f"{name}.judge.bias")
            self.dn[name] = {f"c{i}": norm(f"{name}.layers.{i}") for i in (1, 2, 3)}

    def generator_parameters(self):
        affine = [t for n in self.norms.values() for four in n.by_size.values() for t in four[:2]]
        return [*self.s.values(), *self.j.values(), *affine]

    def critic_parameters(self):
        found = []
        for name in self.d:
            found += self.d[name].values()
            for n in self.dn[name].values():
                found += [t for four in n.by_size.values() for t in four[:2]]
        return found

    def forward(self, Au, B0, size, keep):
        A, x = splitter(self.s, self.norms, Au, size, keep, self.num_object)
        B, e = splitter(self.s, self.norms, B0, size, keep, self.num_object)
        zero = torch.zeros_like(x)
        made = [
            joiner(self.j, self.norms, background, thing, size, keep)
            for background, thing in ((A, x), (B, zero), (B, x), (A, zero))
        ]
        return e, made

    def judge(self, name, image, size):
        return critic(self.d[name], self.dn[name], image, size)

    def critic_loss(self, images, weights):
        """images: size -> (Au, B0)."""
        total = 0.0
        for size, (Au, B0) in images.items():
            with torch.no_grad():
                _, (_, _, Bu, A0) = self.forward(Au, B0, size, keep=False)
            Ax_Bx = self.judge("critic_Ax", Bu, size) - self.judge("critic_Ax", Au, size)
            Be_Ae = self.judge("critic_Be", A0, size) - self.judge("critic_Be", B0, size)
            total = total + weights[size] * (Ax_Bx.mean() + Be_Ae.mean())
        return total

    def generator_loss(self, images, weights):
        total = 0.0
        for size, (Au, B0) in images.items():
            e, (Au_hat, B0_hat, Bu, A0) = self.forward(Au, B0, size, keep=True)
            one = e.abs().mean()
            one = one + (Au - Au_hat).abs().mean() / 255 + (B0 - B0_hat).abs().mean() / 255
            one = one - self.judge("critic_Ax", Bu, size).mean()
            one = one - self.judge("critic_Be", A0, size).mean()
            one = one + 0.01 * (Au + B0 - Bu - A0).abs().mean()
            total = total + weights[size] * one
        convolutions = [*self.s.values(), *(w for n, w in self.j.items() if n != "bias")]
        return total + sum(0.5 * 5e-5 * (w**2).mean() for w in convolutions)

    def clip(self):
        with torch.no_grad():
            for parameter in self.critic_parameters():
                parameter.clamp_(-0.01, 0.01)
