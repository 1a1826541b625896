"""Scores of how much the answers depend on an expert: one backward pass for activations, layer by layer.

M: the answers' margin, Σ log-odds of the right tokens; a = ‖∂M/∂y‖ at the routed output y = Σ g f; ``taylor`` alone
takes the gradient of the answers' cross-entropy, in a backward pass of its own. MC-Suite's gradient criteria mirror
those of activations with ∂M/∂f = g ∂M/∂y for f: the paper takes gradients of weights by the loss, which is flat
wherever the model is sure, and needs as much memory as the weights.
"""

from __future__ import annotations

from premoe_runtime.offline.profile.criteria.router import MC_SUITE
from premoe_runtime.offline.profile.criteria.score import Score, apart, entropy, mean_of, mean_of_chosen
from premoe_runtime.offline.profile.state import Sum

IMPACT = Sum("impact", "gradient", "chosen", lambda seen: (seen.change * seen.sensitivity[:, None]).square())
SENSITIVITY = Sum("sensitivity", "gradient", "chosen", lambda seen: seen.shares * seen.sensitivity[:, None])
SENSITIVE_NORM = Sum(
    "sensitive_norm", "gradient", "chosen", lambda seen: seen.weights * seen.norms * seen.sensitivity[:, None]
)
TAYLOR = Sum("taylor", "loss", "chosen", lambda seen: (seen.weights * seen.along).abs(), bits=36)
GRADIENTS = Sum("gradients", "gradient", "vector", lambda seen: seen.vectors, bits=30)
GRADIENT_SQUARES = Sum("gradient_squares", "gradient", "vector", lambda seen: seen.vectors.square(), bits=36)
GRADIENT_OUTLIERS = Sum("gradient_outliers", "gradient", "chosen", lambda seen: seen.outliers, whole=True)
GRADIENT_NORM = Sum("gradient_norm", "gradient", "chosen", lambda seen: seen.weights * seen.sensitivity[:, None])

SCORES = (
    Score(
        "impact",
        "mean over tokens of (a d)², d the change of y if the expert went and the others took over its weight",
        "PreMoE's own (ADR 0012)",
        (IMPACT,),
        mean_of(IMPACT),
        comparable=True,
    ),
    Score(
        "sens",
        "mean over tokens of a·g, g as a share of the token's weights",
        "PreMoE's own",
        (SENSITIVITY,),
        mean_of(SENSITIVITY),
        comparable=True,
    ),
    Score(
        "sens-norm",
        "mean over tokens of a·g‖f‖",
        "PreMoE's own",
        (SENSITIVE_NORM,),
        mean_of(SENSITIVE_NORM),
        ("sens.norm",),
        comparable=True,
    ),
    Score(
        "taylor",
        "mean over tokens of |∂L/∂y · g f|, L the answers' cross-entropy",
        "first-order pruning, arXiv 1611.06440",
        (TAYLOR,),
        mean_of(TAYLOR),
        comparable=True,
    ),
    Score("egs", "eas with ∂M/∂f for f", MC_SUITE, (GRADIENTS,), apart(GRADIENTS)),
    Score("ege", "eae with ∂M/∂f for f", MC_SUITE, (GRADIENTS, GRADIENT_SQUARES), entropy(GRADIENTS, GRADIENT_SQUARES)),
    Score("ego", "eao with ∂M/∂f for f", MC_SUITE, (GRADIENT_OUTLIERS,), mean_of_chosen(GRADIENT_OUTLIERS)),
    Score("egn", "ean with ∂M/∂f for f", MC_SUITE, (GRADIENT_NORM,), mean_of(GRADIENT_NORM)),
)
