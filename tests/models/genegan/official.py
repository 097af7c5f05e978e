"""The earlier PyTorch system's networks by their names, and its step, written down plainly.

Names, order and settings are facts of the public system (zsc/genegan_torch); the code is ours, and
nothing of imgtool is used. Widths are a parameter, for tests.
"""

import torch
import torch.nn.functional as F
from torch import nn

SIZES = (64, 96, 128)


class Switch(nn.Module):
    def __init__(self, width):
        super().__init__()
        norms = {str(s): nn.BatchNorm2d(width, eps=1e-3, momentum=0.01) for s in SIZES}
        self.bns = nn.ModuleDict(norms)

    def forward(self, x, size):
        return self.bns[str(size)](x)


class Blocks(nn.Module):
    def __init__(self, width, block=4):
        super().__init__()
        self.block = block
        self.by_hw = nn.ModuleDict()
        for side in (12, 16):
            number = (side // block) ** 2
            convs = [nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(number)]
            self.by_hw[str(side)] = nn.ModuleList(convs)

    def forward(self, x):
        convs = iter(self.by_hw[str(x.shape[-1])])
        rows = [
            torch.cat([next(convs)(part) for part in row.split(self.block, dim=3)], dim=3)
            for row in x.split(self.block, dim=2)
        ]
        return torch.cat(rows, dim=2)


class Splitter(nn.Module):
    def __init__(self, width, *, blocks):
        super().__init__()
        self.num_object = width
        self.conv1 = nn.Conv2d(3, width, 4, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)
        self.bn2 = Switch(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, 1, 1, bias=False)
        self.bn3 = Switch(4 * width)
        self.conv4 = nn.Conv2d(4 * width, 4 * width, 4, 2, 1, bias=False)
        self.bn4 = Switch(4 * width)
        self.obj_blockconv = Blocks(width) if blocks else None
        self.obj_block_bn = Switch(width) if blocks else None

    def forward(self, image):
        size = image.shape[-1]
        h = F.leaky_relu(self.conv1(image / 255), 0.2)
        h = F.leaky_relu(self.bn2(self.conv2(h), size), 0.2)
        h = F.leaky_relu(self.bn3(self.conv3(h), size), 0.2)
        if size > 64:
            h = F.leaky_relu(self.bn4(self.conv4(h), size), 0.2)
        background, thing = h[:, : -self.num_object], h[:, -self.num_object :]
        if self.obj_blockconv is not None:
            moved = self.obj_block_bn(self.obj_blockconv(thing), size)
            thing = thing + F.leaky_relu(moved, 0.2)
        return background, thing


class Joiner(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.deconv1 = nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False)
        self.bn1 = Switch(2 * width)
        self.deconv2 = nn.ConvTranspose2d(2 * width, 2 * width, 4, 2, 1, bias=False)
        self.bn2 = Switch(2 * width)
        self.deconv3 = nn.ConvTranspose2d(2 * width, 2 * width, 4, 2, 1, bias=False)
        self.bn3 = Switch(2 * width)
        self.to_rgb = nn.Conv2d(2 * width, 3, 3, 1, 1, bias=False)
        self.out_bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, background, thing, size):
        h = torch.cat([background, thing], dim=1)
        h = F.relu(self.bn1(self.deconv1(h), size))
        h = F.relu(self.bn2(self.deconv2(h), size))
        if size > 64:
            h = F.relu(self.bn3(self.deconv3(h), size))
        return (torch.tanh(self.to_rgb(h) + self.out_bias) + 1) * 255 / 2


class Critic(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 4, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)
        self.bn2 = Switch(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False)
        self.bn3 = Switch(4 * width)
        self.conv4 = nn.Conv2d(4 * width, 4 * width, 4, 2, 1, bias=False)
        self.bn4 = Switch(4 * width)
        self.fc = nn.Linear(4 * width * 16, 1)

    def forward(self, image):
        size = image.shape[-1]
        h = F.leaky_relu(self.conv1(image / 255), 0.2)
        for number in (2, 3, 4):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            h = F.leaky_relu(norm(conv(h), size), 0.2)
        return self.fc(F.adaptive_avg_pool2d(h, 4).flatten(1))


class Official:
    """Networks, optimizers and steps; `images` are size -> (Au, B0) on 0..255."""

    def __init__(self, width, *, blocks, lr=5e-5):
        self.splitter, self.joiner = Splitter(width, blocks=blocks), Joiner(width)
        self.d_ax, self.d_be = Critic(width), Critic(width)
        for network in (self.splitter, self.joiner, self.d_ax, self.d_be):
            for weight in network.parameters():
                if weight.ndim in (2, 4) and weight.shape[0] * weight.shape[1] != 3:
                    nn.init.normal_(weight, 0, 0.02)
        generator = [*self.splitter.parameters(), *self.joiner.parameters()]
        critics = [*self.d_ax.parameters(), *self.d_be.parameters()]
        self.opt_g = torch.optim.RMSprop(generator, lr=lr, alpha=0.8)
        self.opt_d = torch.optim.RMSprop(critics, lr=lr, alpha=0.8)

    def content(self, iteration):
        """What it saves."""
        return {
            "G_splitter": self.splitter.state_dict(),
            "G_joiner": self.joiner.state_dict(),
            "D_Ax": self.d_ax.state_dict(),
            "D_Be": self.d_be.state_dict(),
            "opt_G": self.opt_g.state_dict(),
            "opt_D": self.opt_d.state_dict(),
            "iter": iteration,
            "config": {"attribute": "Smiling", "img_sizes": SIZES},
        }

    def load(self, content):
        for key, network in (
            *(("G_splitter", self.splitter), ("G_joiner", self.joiner)),
            *(("D_Ax", self.d_ax), ("D_Be", self.d_be)),
            *(("opt_G", self.opt_g), ("opt_D", self.opt_d)),
        ):
            network.load_state_dict(content[key])

    def four(self, Au, B0):
        (A, x), (B, e) = self.splitter(Au), self.splitter(B0)
        size, nothing = Au.shape[-1], torch.zeros_like(x)
        pairs = ((A, x), (B, nothing), (B, x), (A, nothing))
        return e, [self.joiner(background, thing, size) for background, thing in pairs]

    def critic_step(self, images):
        kept = [{k: v.clone() for k, v in n.state_dict().items()} for n in self._generator()]
        self.opt_d.zero_grad()
        total = 0.0
        for Au, B0 in images.values():
            with torch.no_grad():
                _, (_, _, Bu, A0) = self.four(Au, B0)
            loss = (self.d_ax(Bu) - self.d_ax(Au)).mean() + (self.d_be(A0) - self.d_be(B0)).mean()
            total = total + loss / len(images)
        total.backward()
        self.opt_d.step()
        for network, state in zip(self._generator(), kept, strict=True):
            network.load_state_dict(state)  # its running statistics stay in these steps
        with torch.no_grad():
            for weight in (*self.d_ax.parameters(), *self.d_be.parameters()):
                weight.clamp_(-0.01, 0.01)
        return {"loss_D": total.item()}

    def generator_step(self, images):
        self.opt_g.zero_grad()
        losses = dict.fromkeys(("e", "cycle_Ax", "cycle_Be", "Bx", "Ae", "parallelogram"), 0.0)
        for Au, B0 in images.values():
            e, (Au_hat, B0_hat, Bu, A0) = self.four(Au, B0)
            terms = {
                "e": e.abs().mean(),
                "cycle_Ax": (Au - Au_hat).abs().mean() / 255,
                "cycle_Be": (B0 - B0_hat).abs().mean() / 255,
                "Bx": -self.d_ax(Bu).mean(),
                "Ae": -self.d_be(A0).mean(),
                "parallelogram": 0.01 * (Au + B0 - Bu - A0).abs().mean(),
            }
            losses = {name: losses[name] + term / len(images) for name, term in terms.items()}
        decay = 0.0
        for network in self._generator():
            for part in network.modules():
                if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                    decay = decay + 0.5 * 5e-5 * (part.weight**2).mean()
        losses |= {"loss_G_nodecay": sum(losses.values()), "loss_G_decay": decay}
        losses["loss_G"] = losses["loss_G_nodecay"] + decay
        losses["loss_G"].backward()
        self.opt_g.step()
        return {name: loss.item() for name, loss in losses.items()}

    def _generator(self):
        return self.splitter, self.joiner
