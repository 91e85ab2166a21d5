"""What the race on the LASSO's objective is about: problems, seeds, training, and options that are frozen.

Every option was chosen on the tuning seeds alone, before a problem of the test seeds was drawn.
"""

from tasks import Lasso

TUNING_CODES, ADMM_CODES = 6001, 6002
"""Seeds of the codes on which options were chosen: those of `Safeguarded` and the layers; ρ and α of ADMM."""
TUNING_DICTIONARIES = (101, 102, 103, 104, 105)
"""Dictionary seeds on which options were chosen, in the order of `UNSEEN`."""
TEST_CODES, UNSEEN_CODES = 77001, 77002
"""Seeds of the codes that are reported: of the published matrix, of dictionaries never seen."""
PROBLEMS = 1000


def rule_name(strength: float) -> str:
    """Return what the race calls the checkpoint, in its folder rules/, of the rule that it trained for a λ."""
    return f"firm-alista-{strength:g}"


SETTINGS = {f"λ = {strength:g}": Lasso(dictionary="published", strength=strength) for strength in (0.1, 0.005)}
TRAINING = {
    "λ = 0.1": "rule:firm-alista --rule.layers 6 --horizon 6 --truncation 6 --outer-steps 600 "
    "--task.supervision 0 --task.strength 0.1",
    "λ = 0.005": "rule:firm-alista --rule.layers 10 --horizon 10 --truncation 10 --outer-steps 800",
}
"""What follows `l2o train sparse`: by the objective for the large λ, by x* for the small, whose solution is near."""
UNSEEN = {
    "other seed": Lasso(dictionary_seed=201, strength=0.1),
    "other seed, λ = 0.005": Lasso(dictionary_seed=202, strength=0.005),
    "condition number 50": Lasso(dictionary_seed=203, condition=50.0, strength=0.1),
    "200×600": Lasso(rows=200, columns=600, dictionary_seed=204, strength=0.1),
    "λ = 0.03, SNR 20 dB": Lasso(dictionary_seed=205, strength=0.03, snr_db=20.0),
}
"""Dictionaries that no rule was trained on, and no option chosen on; raced with the rule trained for λ = 0.1."""
STEPS = {"ISTA": 100, "FISTA": 250, "FISTA-restart": 250, "ADMM": 300, "FISTA + Newton": 250}
SAFEGUARDED_STEPS = 40
MODEL_FREE = {"lstm-lasso": 250, "proximal-lstm-lasso": 250}
"""Shipped rules without a layer of their own for every step, trained on 25×50 problems with λ = 0.005; their steps."""
UNSEEN_STEPS = 220
REFERENCE_PROBLEMS = 50
"""How many each solver of another package gets, one at a time."""

ADMM_RHOS = tuple(10 ** (-k / 2) for k in range(9))
"""ρ in units of ‖A‖²: 1 to 1e-4, two a decade."""
ADMM_RELAXATIONS = (1.0, 1.5, 1.8)
ADMM_PROBLEMS, ADMM_STEPS = 200, 400
