"""The choice between a variational and a deterministic encoder."""

from __future__ import annotations

from collections.abc import Sequence

from imgtool.selection.candidates import ordered
from imgtool.selection.judge import Judge
from imgtool.selection.records import Candidate
from imgtool.selection.rule_file import Criterion, Rule, sign_of


def choose_variational(
    eligible: Sequence[Candidate], criteria: Sequence[Criterion], rule: Rule, judge: Judge
) -> tuple[list[Candidate], str]:
    """Candidates, best first, and why the first is.

    The best VAE comes first when it has not collapsed, when its quality is within `margin` of the
    best deterministic encoder, and when it interpolates better by more than the noise; else that
    encoder does, which is simpler.
    """
    vaes = ordered([c for c in eligible if is_variational(c)], criteria, rule, judge.tied)
    plain = ordered([c for c in eligible if not is_variational(c)], criteria, rule, judge.tied)
    alive = [vae for vae in vaes if collapse(vae, rule) is None]
    dead = [vae for vae in vaes if collapse(vae, rule) is not None]
    if not vaes:
        return plain, f"{plain[0].name} is the best; there is no VAE to compare it with"
    if not alive:
        why = f"{dead[0].name} has collapsed ({collapse(dead[0], rule)})"
        first = [*plain, *dead]
        return first, f"{first[0].name}: {why}" if plain else f"{why}, and there is nothing else"
    if not plain:
        return [*alive, *dead], f"{alive[0].name} is the best; all are variational"
    base = plain[0]
    problems = {id(vae): objection(vae, base, rule, judge) for vae in alive}
    good = [vae for vae in alive if problems[id(vae)] is None]
    if not good:
        reason = f"{base.name}, deterministic: {alive[0].name} {problems[id(alive[0])]}"
        return [*plain, *alive, *dead], reason
    vae = good[0]
    others = [c for c in alive if c is not vae]
    smooth, rough = vae.metrics[rule.interpolation], base.metrics[rule.interpolation]
    reason = (
        f"{vae.name}, a VAE, has not collapsed, interpolates better than {base.name} "
        f"({rule.interpolation} {smooth:.4g} against {rough:.4g}), and its {rule.metric} {vae.metrics[rule.metric]:.4g} is within "
        f"{rule.margin:.0%} of {base.metrics[rule.metric]:.4g}{_remark(vae, rule)}"
    )
    return [vae, *others, *plain, *dead], reason


def is_variational(candidate: Candidate) -> bool:
    """A VAE's table has its KL divergence."""
    return any(key in candidate.metrics for key in ("val_kld", "val_kld_weighted", "val_kld_nats"))


def collapse(vae: Candidate, rule: Rule) -> str | None:
    """What shows that the latent carries too little; None when it carries enough.

    Active units decide where they are known; the weighted KL divergence does where they are not.
    """
    active, shape = vae.metrics.get("val_active_units"), vae.runs[0].facts.get("latent_shape")
    if active is not None and isinstance(shape, Sequence) and shape and shape[0]:
        share = active / shape[0]
        told = f"{active:g} of {shape[0]} channels are active, under {rule.min_active:.0%}"
        return told if share < rule.min_active else None
    weighted = vae.metrics.get("val_kld_weighted")
    if weighted is not None and weighted < rule.kld_min:
        return f"weighted KL divergence {weighted:.3g} is under {rule.kld_min:g}"
    return None


def objection(vae: Candidate, base: Candidate, rule: Rule, judge: Judge) -> str | None:
    """Why the VAE does not replace the deterministic encoder; None when it does."""
    ours, theirs = vae.metrics[rule.metric], base.metrics[rule.metric]
    sign = sign_of(rule.metric, rule)
    if sign * (ours - theirs) > rule.margin * abs(theirs):
        return f"has {rule.metric} {ours:.4g}, over {rule.margin:.0%} worse than {theirs:.4g}"
    metric = rule.interpolation
    smooth, rough = vae.metrics.get(metric), base.metrics.get(metric)
    if smooth is None or rough is None:
        return f"cannot be shown to interpolate better: no {metric}, see `imgtool eval latents`"
    told = f"({metric} {smooth:.4g} against {rough:.4g})"
    factor = rule.smoother_by if sign_of(metric, rule) == -1 else 1 / rule.smoother_by
    if sign_of(metric, rule) * (smooth - rough * factor) >= 0:
        return f"interpolates no better {told}"
    if not judge.differs(vae, base, metric):
        return f"interpolates no better than by the noise {told}: a tie, and it is less simple"
    return None


def _remark(vae: Candidate, rule: Rule) -> str:
    weighted = vae.metrics.get("val_kld_weighted")
    if weighted is None or rule.kld_min <= weighted <= rule.kld_max:
        return ""
    return f" (weighted KL divergence {weighted:.3g}, outside {rule.kld_min:g} to {rule.kld_max:g})"
