"""The integer entropy path once more, in numpy's int64 and without torch's arithmetic.

Written from the documentation of the format alone: weights w / 2^e of an input with exponent e
become round(w 2^g / 2^e) with the largest g that keeps a row within 8127 (at most the output's
exponent + 24); sums are rounded, ties to even, to the output's exponent and saturate at 32639.
Tensors between networks are values in units of 2^-24.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from imgtool.models.hpcm.partition import add, coarser, gather, insert

FIXED, ACTIVATION_MAX, WEIGHT_MAX = 24, 32639, 8127


def rounded(number, bits):
    """number / 2^bits, ties to even; bits may be negative, and differ by channel."""
    bits = np.broadcast_to(np.asarray(bits, np.int64), number.shape)
    up = number << np.maximum(-bits, 0)
    down = np.maximum(bits, 0)
    floor = up >> down
    twice = 2 * (up - (floor << down))
    one = np.int64(1) << down
    return floor + ((twice > one) | ((twice == one) & (floor % 2 == 1)))


def saturated(number):
    return np.clip(number, -ACTIVATION_MAX, ACTIVATION_MAX)


def moved(function, *values, **more):
    """What only moves numbers is torch's."""
    tensors = (torch.from_numpy(np.ascontiguousarray(value))[None] for value in values)
    return function(*tensors, **more)[0].numpy()


def column(exponents):
    return np.asarray(exponents, np.int64)[:, None, None]


def taken(value, exponents):
    return saturated(rounded(value, FIXED - column(exponents)))


def given(number, exponents):
    return number << (FIXED - column(exponents))


def whole(weight, bias, target):
    """Integer weights and biases, and g of each row."""
    g = np.empty(len(weight), np.int64)
    for row, (values, exponent) in enumerate(zip(weight, target, strict=True)):
        tries = range(int(exponent) + 24, -200, -1)
        g[row] = next(n for n in tries if math.ldexp(np.abs(values).max(), n) <= WEIGHT_MAX)
    scale = np.ldexp(1.0, g)
    integers = np.rint(weight * scale[:, None]).astype(np.int64)
    return integers, np.rint(bias * scale).astype(np.int64), g


def product(x, weight, bias, source, target, *, residual=None, leaky=False):
    """x (inputs, h, w) to (outputs, h, w); `residual` is integers and their exponents."""
    source, target = np.asarray(source), np.asarray(target)
    weight, bias, g = whole(weight * np.ldexp(1.0, -source), bias, target)
    flat = x.reshape(len(x), -1)
    total = np.stack([(row[:, None] * flat).sum(axis=0) for row in weight]) + bias[:, None]
    total = total.reshape(-1, *x.shape[1:])
    bits = g - target
    if residual is not None:
        other, exponents = residual
        finest = np.maximum(np.maximum(bits, np.asarray(exponents) - target), 0)
        total = (total << column(finest - bits)) + (
            other << column(finest - np.asarray(exponents) + target)
        )
        bits = finest
    if leaky:
        low = rounded(total * 655, column(bits + 16))
        return saturated(np.where(total < 0, low, rounded(total, column(bits))))
    return saturated(rounded(total, column(bits)))


def neighbours(x):
    """The nine shifted copies of x (C, h, w), zeros beyond its edges."""
    _, high, wide = x.shape
    padded = np.zeros((len(x), high + 2, wide + 2), np.int64)
    padded[:, 1:-1, 1:-1] = x
    return [padded[:, i : i + high, j : j + wide] for i in range(3) for j in range(3)]


class Plain:
    """Reads a model's weights (of its state dict) and its stored integers."""

    def __init__(self, model, numbers):
        self.weights = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.e = {name: value.numpy() for name, value in numbers.exponents.items()}
        self.table = numbers.table.numpy().astype(np.int64)
        self.thresholds = numbers.thresholds.numpy().astype(np.int64)
        self.model, self.variant = model, model.variant

    def means_of_z(self):
        means = np.rint(self.weights["means_hyper"][0] * 2**16).astype(np.int64)
        return means << (FIXED - 16)

    def pointwise(self, name, x, source, target, **more):
        weight = self.weights[f"{name}.weight"]
        weight = weight.reshape(len(weight), -1)
        return product(x, weight, self.weights[f"{name}.bias"], source, target, **more)

    def block(self, name, x, source):
        spatial, inner = self.e[f"{name}.spatial"], self.e[f"{name}.expand"]
        if f"{name}.spatial.conv.weight" in self.weights:
            weight = self.weights[f"{name}.spatial.conv.weight"]
            active = len(weight)
            taps = np.concatenate(neighbours(x[:active]))
            flat = weight.transpose(0, 2, 3, 1).reshape(active, -1)
            bias = self.weights[f"{name}.spatial.conv.bias"]
            mixed = product(taps, flat, bias, np.tile(source[:active], 9), spatial)
            mixed = np.concatenate([mixed, x[active:]])
            spatial = np.concatenate([spatial, source[active:]])
        else:
            weight = self.weights[f"{name}.spatial.weight"].reshape(len(x), 9)
            bias = self.weights[f"{name}.spatial.bias"]
            mixed = np.concatenate(
                [
                    product(
                        np.stack([shifted[c] for shifted in neighbours(x)]),
                        weight[c : c + 1], bias[c : c + 1],
                        np.repeat(source[c], 9), spatial[c : c + 1],
                    )
                    for c in range(len(x))
                ]
            )  # fmt: skip
        out = self.pointwise(f"{name}.expand", mixed, spatial, inner, leaky=True)
        return self.pointwise(f"{name}.reduce", out, inner, self.e[name], residual=(x, source))

    def hyper(self, z_hat):
        at = self.e["z_hat"]
        x = taken(z_hat, at)
        for number in range(len(self.model.h_s)):
            name = f"h_s.{number}"
            if f"{name}.weight" in self.weights:
                weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
                out = np.zeros((weight.shape[1], 2 * x.shape[1], 2 * x.shape[2]), np.int64)
                for row in range(2):
                    for col in range(2):
                        tap = weight[:, :, row, col].T
                        out[:, row::2, col::2] = product(x, tap, bias, at, self.e[name])
                x = out
            else:
                x = self.block(name, x, at)
            at = self.e[name]
        return given(x, at)

    def parameters(self, name, x, factor):
        at = self.e[f"{name}.input"]
        for number in range(len(self.model.get_submodule(f"{name}.before"))):
            x = self.block(f"{name}.before.{number}", x, at)
            at = self.e[f"{name}.before.{number}"]
        scaled = self.e[f"{name}.scaled"]
        x = np.concatenate(
            [
                product(x[c : c + 1], factor[c].reshape(1, 1), np.zeros(1), at[c : c + 1], scaled[c : c + 1])
                for c in range(len(x))
            ]
        )  # fmt: skip
        at = scaled
        blocks = len(self.model.get_submodule(f"{name}.after")) - 1
        for number in range(blocks):
            x = self.block(f"{name}.after.{number}", x, at)
            at = self.e[f"{name}.after.{number}"]
        psi = self.e["context.psi"]
        return given(self.pointwise(f"{name}.after.{blocks}", x, at, psi), psi)

    def attention(self, number, psi, state):
        name, heads = f"context.attention.{number}", self.variant.num_heads
        e_psi, e_state = self.e["context.psi"], self.e["context.state"]
        parts = ("query", "out", "key", "value")
        e_query, e_out, e_key, e_value = (self.e[f"{name}.{part}"] for part in parts)
        channels = len(psi)
        weight = self.weights[f"{name}.query_out.weight"][:, :, 0, 0].copy()
        bias = self.weights[f"{name}.query_out.bias"].copy()
        weight[:channels] *= 1 / math.sqrt(channels // heads)
        bias[:channels] *= 1 / math.sqrt(channels // heads)
        both = np.concatenate([e_query, e_out])
        query, out = np.split(product(taken(psi, e_psi), weight, bias, e_psi, both), 2)
        both = np.concatenate([e_key, e_value])
        of_state = self.pointwise(f"{name}.key_value", taken(state, e_state), e_state, both)
        key, value = np.split(of_state, 2)
        found, side = np.zeros_like(query), self.variant.windows[number]
        for top in range(0, psi.shape[1], side):
            for left in range(0, psi.shape[2], side):
                for group in np.split(np.arange(channels), heads):
                    at = (group, slice(top, top + side), slice(left, left + side))
                    q, k, v = (x[at].reshape(len(group), -1) for x in (query, key, value))
                    bits = int(e_query[group[0]] + e_key[group[0]]) - 9
                    logits = rounded(q.T @ k, bits)
                    below = logits.max(axis=1, keepdims=True) - logits
                    p = self.table[np.minimum(below, len(self.table) - 1)]
                    sums, totals = v @ p.T, p.sum(axis=1)
                    floor = sums // totals
                    twice = 2 * (sums - floor * totals)
                    up = (twice > totals) | ((twice == totals) & (floor % 2 == 1))
                    found[at] = (floor + up).reshape(found[at].shape)
        finest = np.maximum(np.maximum(e_out, e_value), e_state)
        total = (out << column(finest - e_out)) + (found << column(finest - e_value))
        return given(saturated(rounded(total, column(finest - e_state))), e_state)

    def walk(self, z_hat, code):
        """y_hat; `code(step, tables, means)` gives a step's residuals (n,)."""

        e_state, e_y = self.e["context.state"], self.e["context.y_hat"]
        joined = np.concatenate([e_state, e_y])
        hyper = self.hyper(z_hat)
        s2 = moved(coarser, hyper, scale=3, stacked=2)
        hypers = {3: hyper, 2: s2, 1: moved(coarser, s2, scale=2, stacked=2)}
        psi = context = hypers[1]
        y_hat, scale = np.zeros((self.variant.M, *psi.shape[1:]), np.int64), 1
        steps = self.model.context.steps
        for i, step in enumerate(steps):
            if step.scale != scale:
                scale = step.scale
                context = moved(insert, context, hypers[scale], scale=scale, stacked=2)
                name = f"context.finer.{scale - 2}"
                source = self.e[f"{name}.input"]
                context = self.pointwise(name, taken(context, source), source, e_state)
                context = given(context, e_state)
                empty = np.zeros((self.variant.M, *hypers[scale].shape[1:]), np.int64)
                y_hat = moved(insert, y_hat, empty, scale=scale)
            if i:
                name = "context.coarse" if scale < 3 else "context.fine"
                x = taken(np.concatenate([context, y_hat]), joined)
                target = self.e[f"{name}.input"]
                x = self.pointwise(f"context.adaptors.{i - 1}", x, joined, target)
                psi = self.parameters(name, x, self.weights[f"context.factors.{i - 1}"].ravel())
            scales, means = np.split(moved(gather, psi, step=step, stacked=2), 2)
            tables = (self.thresholds < scales[..., None]).sum(axis=-1)
            residuals = code(step, tables, means).astype(np.int64).reshape(means.shape)
            values = (residuals << FIXED) + means
            y_hat = moved(add, y_hat, values, step=step)
            if i and step is not steps[-1]:
                context = self.attention(scale - 1, psi, context)
        return y_hat
