"""Acts by a policy that `iqmjx export --format numpy` wrote; needs NumPy 2 alone.

from numpy_policy import load
policy = load("humanoid.npz")
action = policy(obs)  # [B, O] -> [B, A] or [O] -> [A], in the task's own units
"""

import numpy as np


def load(path):
    """The policy in a file: a function from raw observations to actions."""
    p = dict(np.load(path))
    size = len(p["obs_mean"])

    def policy(obs):
        obs = np.asarray(obs, np.float32)
        if obs.ndim not in (1, 2) or obs.shape[-1] != size:
            raise ValueError(f"obs has shape {obs.shape}; give [{size}] or [B, {size}]")
        action = act(p, np.atleast_2d(obs), np)
        return action[0] if obs.ndim == 1 else action

    return policy


def act(p, obs, xp):
    """Actions [B, A] for observations [B, O]; p: the policy's arrays; xp: as NumPy."""
    limit = float(p["obs_limit"])
    x = xp.clip((obs - p["obs_mean"]) * p["obs_scale"], -limit, limit)
    for layer in range(p["num_layers"]):
        x = activate(p, x, xp) if layer else x
        # The factors have 24 binary digits, or 8 (bfloat16): spread is 1, or 2^16 + 1.
        spread = x * p["spread"]
        x = xp.matmul(spread - (spread - x), p[f"kernel_{layer}"]) + p[f"bias_{layer}"]
    return p["action_center"] + p["action_scale"] * CONTROLS[str(p["kind"])](p, x, xp)


def activate(p, x, xp):
    """ReLU, after LayerNorm where the policy has it."""
    if p["layer_norm"]:
        x = x - xp.mean(x, axis=-1, keepdims=True)
        x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return xp.maximum(x, 0)


def likeliest(p, outputs, xp):
    """The point of the bin with the largest output."""
    return xp.take(xp.asarray(p["points"]), xp.argmax(outputs, axis=-1), axis=0)


def independent(p, x, xp):
    """The likeliest bin of each dimension, of outputs [B, A * n]."""
    rows = xp.reshape(x, (-1, len(p["points"])))
    return xp.reshape(likeliest(p, rows, xp), (-1, len(p["action_center"])))


def median(p, outputs, xp):
    """The middle of a rational-quadratic spline: a rounded histogram of n bins."""
    n = len(p["points"])
    mass = xp.exp(outputs - xp.max(outputs, axis=-1, keepdims=True))
    end = xp.matmul(mass, np.triu(np.ones((n, n), np.float32)))  # sums of mass
    half = end[..., -1:] / 2
    bin = xp.argmax(xp.minimum(end - half, 0), axis=-1)  # the first that reaches it
    # Slopes of the spline at the ends of each bin, in units of the bin's mean slope.
    turn = xp.tanh((outputs[..., 1:] - outputs[..., :-1]) / 2)
    one = xp.ones_like(outputs[..., :1])
    left = xp.concat([one, xp.maximum(1 - turn, 1e-3)], axis=-1)
    right = xp.concat([xp.maximum(1 + turn, 1e-3), one], axis=-1)
    left, right, end, mass = (
        xp.take_along_axis(each, bin[..., None], axis=-1)
        for each in (left, right, end, mass)
    )
    rise = xp.clip(1 - (end - half) / mass, 0, 1)
    bend = left - (left + right - 2) * rise
    share = 2 * rise / (bend + xp.sqrt(bend * bend + 4 * (1 - bend) * rise))
    starts = np.linspace(-1, 1, n + 1, dtype=np.float32)
    return xp.take(xp.asarray(starts), bin, axis=0) + share[..., 0] * np.float32(2 / n)


def walk(p, hidden, xp, choose):
    """Action dimension after dimension: each sees those before it."""
    points, controls = p["points"], []
    for j in range(len(p["bias"])):
        outputs = xp.matmul(activate(p, hidden, xp), p["weight"][j]) + p["bias"][j]
        controls.append(choose(p, outputs, xp))
        apart = abs(controls[j][..., None] - points) / (points[1] - points[0])
        hidden = hidden + xp.matmul(xp.maximum(1 - apart, 0), p["embedding"][j])
    return xp.stack(controls, axis=-1)


CONTROLS = {  # of each policy class, in [-1, 1]
    "multicategorical": independent,
    "autoregressive": lambda p, x, xp: walk(p, x, xp, likeliest),
    "gaussian": lambda p, x, xp: xp.clip(x, -1, 1),
    "flow": lambda p, x, xp: walk(p, x, xp, median),
    "tanh_gaussian": lambda p, x, xp: xp.tanh(x),
}
