"""Evidence made by hand."""

from imgtool.selection.records import Evidence
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select


def run(name, mse, dims=None, *, group=None, state="completed", facts=None, seed=None, **more):
    """Evidence of one run."""
    metrics = {"val_mse": mse, **more}
    if mse is None:
        del metrics["val_mse"]
    if dims is not None:
        metrics["latent_dims"] = dims
    return Evidence(
        name=name, group=group or name, exp_dir=None, table_path=None, state=state,
        epochs=(), iterations=(), curves={}, metrics=metrics, facts=facts or {}, seed=seed,
    )  # fmt: skip


def winner(evidence, rule="efficiency", *sets):
    """The name of what a rule chooses."""
    found = select(evidence, load_rule(rule, sets)).winner
    return found and found.candidate.name
