"""Passes through published checkpoints of MobileNets in plain numpy, by the publishers' own tensor names.

Written from the papers' tables and the names alone; nothing of models/vision is used here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

TIMM_V2 = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
TIMM_V3_SMALL = (
    "ds_r1_k3_s2_e1_c16_se0.25_nre",
    "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25",
    "ir_r2_k5_s1_e3_c48_se0.25",
    "ir_r3_k5_s2_e6_c96_se0.25",
)
TIMM_V3_LARGE = (
    "ds_r1_k3_s1_e1_c16_nre",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
)
PROXYLESS = (
    *((3, 1, 16, 1), (5, 3, 32, 2), (3, 3, 32, 1), (7, 3, 40, 2), (3, 3, 40, 1), (5, 3, 40, 1)),
    *((5, 3, 40, 1), (7, 6, 80, 2), (5, 3, 80, 1), (5, 3, 80, 1), (5, 3, 80, 1), (5, 6, 96, 1)),
    *((5, 3, 96, 1), (5, 3, 96, 1), (5, 3, 96, 1), (7, 6, 192, 2), (7, 6, 192, 1), (7, 3, 192, 1)),
    *((7, 3, 192, 1), (7, 6, 320, 1)),
)


def convolution(x: Array, weight: Array, bias: Array | None = None, stride: int = 1) -> Array:
    """[n, c, h, w] with odd kernels, padded to keep the map; groups follow from the shapes."""
    outputs, per_group, kernel, _ = weight.shape
    groups = x.shape[1] // per_group
    edge = (kernel - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    side = (x.shape[2] - 1) // stride + 1
    split = padded.reshape(len(x), groups, per_group, *padded.shape[2:])
    parts = weight.reshape(groups, outputs // groups, per_group, kernel, kernel)
    made = np.zeros((len(x), groups, outputs // groups, side, side))
    for row in range(kernel):
        for column in range(kernel):
            seen = split[..., row : row + stride * side : stride, column : column + stride * side : stride]
            made += np.einsum("ngihw,goi->ngohw", seen[..., :side, :side], parts[..., row, column])
    made = made.reshape(len(x), outputs, side, side)
    return made if bias is None else made + bias[:, None, None]


def norm(x: Array, t: Tensors, at: str, eps: float) -> Array:
    centred = x - t[f"{at}.running_mean"][:, None, None]
    scale = t[f"{at}.weight"] / np.sqrt(t[f"{at}.running_var"] + eps)
    return centred * scale[:, None, None] + t[f"{at}.bias"][:, None, None]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def hard_swish(x: Array) -> Array:
    return x * np.clip(x + 3, 0, 6) / 6


def squeeze(x: Array, t: Tensors, first: str, second: str) -> Array:
    pooled = x.mean((2, 3), keepdims=True)
    inner = relu(convolution(pooled, t[f"{first}.weight"], t[f"{first}.bias"]))
    gate = np.clip(convolution(inner, t[f"{second}.weight"], t[f"{second}.bias"]) + 3, 0, 6) / 6
    return x * gate


def timm(t: Tensors, stages: tuple[str, ...], x: Array, eps: float, *, third: bool) -> Array:
    """Logits by timm's names; `stages` are timm's own architecture strings."""
    usual = hard_swish if third else relu6
    x = usual(norm(convolution(x, t["conv_stem.weight"], stride=2), t, "bn1", eps))
    for stage, texts in enumerate(stages):
        number = 0
        for text in texts.split():
            kind = text[:2]
            said = dict(re.findall(r"_(se|[rksec])([\d.]+)", text))
            act = relu if text.endswith("_nre") else usual
            for repeat in range(int(said["r"])):
                at, came = f"blocks.{stage}.{number}", x
                stride = int(said["s"]) if repeat == 0 else 1
                names = ("conv_pw", "conv_dw", "conv_pwl") if kind == "ir" else ("conv_dw", "conv_pw")
                for place, name in enumerate(names, 1):
                    weight = t[f"{at}.{name}.weight"]
                    last, depth = place == len(names), name == "conv_dw"
                    x = convolution(x, weight, stride=stride if depth else 1)
                    x = norm(x, t, f"{at}.bn{place}", eps)
                    x = x if last else act(x)
                    if depth:
                        assert weight.shape[2] == int(said["k"])
                        if "se" in said:
                            x = squeeze(x, t, f"{at}.se.conv_reduce", f"{at}.se.conv_expand")
                if came.shape == x.shape:
                    x = x + came
                number += 1
    if third:
        at = f"blocks.{len(stages)}.0"
        x = usual(norm(convolution(x, t[f"{at}.conv.weight"]), t, f"{at}.bn1", eps))
        x = x.mean((2, 3), keepdims=True)
        x = usual(convolution(x, t["conv_head.weight"], t["conv_head.bias"]))[..., 0, 0]
    else:
        x = usual(norm(convolution(x, t["conv_head.weight"]), t, "bn2", eps)).mean((2, 3))
    return x @ t["classifier.weight"].T + t["classifier.bias"]


def torchvision_v2(t: Tensors, strides: tuple[int, ...], x: Array) -> Array:
    """Logits by torchvision's names of MobileNetV2; `strides` of the seventeen blocks."""
    x = relu6(norm(convolution(x, t["features.0.0.weight"], stride=2), t, "features.0.1", 1e-5))
    for number, stride in enumerate(strides, 1):
        at, came, place = f"features.{number}.conv", x, 0
        while f"{at}.{place}.0.weight" in t:
            weight = t[f"{at}.{place}.0.weight"]
            x = convolution(x, weight, stride=stride if weight.shape[2] > 1 else 1)
            x = relu6(norm(x, t, f"{at}.{place}.1", 1e-5))
            place += 1
        x = norm(convolution(x, t[f"{at}.{place}.weight"]), t, f"{at}.{place + 1}", 1e-5)
        x = x + came if came.shape == x.shape else x
    last = f"features.{len(strides) + 1}"
    x = relu6(norm(convolution(x, t[f"{last}.0.weight"]), t, f"{last}.1", 1e-5)).mean((2, 3))
    return x @ t["classifier.1.weight"].T + t["classifier.1.bias"]


def torchvision_v3(t: Tensors, strides: tuple[int, ...], relus: int, x: Array) -> Array:
    """Logits by torchvision's names of MobileNetV3, whose first `relus` blocks have ReLU."""
    eps = 1e-3
    x = hard_swish(norm(convolution(x, t["features.0.0.weight"], stride=2), t, "features.0.1", eps))
    for number, stride in enumerate(strides, 1):
        at, came, place = f"features.{number}.block", x, 0
        act = relu if number <= relus else hard_swish
        while True:
            if f"{at}.{place}.fc1.weight" in t:
                x = squeeze(x, t, f"{at}.{place}.fc1", f"{at}.{place}.fc2")
            else:
                weight = t[f"{at}.{place}.0.weight"]
                x = convolution(x, weight, stride=stride if weight.shape[1] == 1 else 1)
                x = norm(x, t, f"{at}.{place}.1", eps)
                if not any(name.startswith(f"{at}.{place + 1}.") for name in t):
                    break
                x = act(x)
            place += 1
        x = x + came if came.shape == x.shape else x
    last = f"features.{len(strides) + 1}"
    x = hard_swish(norm(convolution(x, t[f"{last}.0.weight"]), t, f"{last}.1", eps)).mean((2, 3))
    x = hard_swish(x @ t["classifier.0.weight"].T + t["classifier.0.bias"])
    return x @ t["classifier.3.weight"].T + t["classifier.3.bias"]


def proxylessnas(t: Tensors, numbers: tuple[int, ...], x: Array) -> Array:
    """Logits by ProxylessNAS's names; `numbers` are those that its blocks have in the file."""
    eps = 1e-3
    x = relu6(norm(convolution(x, t["first_conv.conv.weight"], stride=2), t, "first_conv.bn", eps))
    for number, (kernel, wider, outputs, stride) in zip(numbers, PROXYLESS, strict=True):
        at, came = f"blocks.{number}.mobile_inverted_conv", x
        if wider > 1:
            x = convolution(x, t[f"{at}.inverted_bottleneck.conv.weight"])
            x = relu6(norm(x, t, f"{at}.inverted_bottleneck.bn", eps))
        weight = t[f"{at}.depth_conv.conv.weight"]
        assert weight.shape[2] == kernel
        x = relu6(norm(convolution(x, weight, stride=stride), t, f"{at}.depth_conv.bn", eps))
        x = norm(convolution(x, t[f"{at}.point_linear.conv.weight"]), t, f"{at}.point_linear.bn", eps)
        assert x.shape[1] == outputs
        x = x + came if came.shape == x.shape else x
    x = relu6(norm(convolution(x, t["feature_mix_layer.conv.weight"]), t, "feature_mix_layer.bn", eps))
    return x.mean((2, 3)) @ t["classifier.linear.weight"].T + t["classifier.linear.bias"]
