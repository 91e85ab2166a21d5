"""Configurations: the JSON round trip and every check of a range."""

import dataclasses
import json
import math

import pytest
import torch

from l2o.checkpoint import save_rule
from l2o.rules import (
    ALISTA,
    MODEL_BASED,
    RULES,
    ALISTAConfig,
    LSTMConfig,
    ProximalLSTMConfig,
    SGDConfig,
    SobolevLSTM,
    SobolevLSTMConfig,
)
from meta_train.config import PRESETS, TrainConfig
from meta_train.config_json import config_name, from_json, to_json
from meta_train.estimators import ES, NRES, PES, MetaLoss, Recorded, Truncated
from meta_train.lengths import Lengths
from meta_train.sharding import Sharded
from meta_train.unroll import start
from tasks import MLP, Lasso, ModuleTask, Quadratic


def through_json(config: TrainConfig) -> TrainConfig:
    return from_json(json.loads(json.dumps(to_json(config))))


def tampered(**changes) -> dict:
    return json.loads(json.dumps(to_json(TrainConfig(Quadratic())))) | changes


@pytest.mark.parametrize("preset", PRESETS)
def test_json_gives_back_every_preset(preset):
    assert through_json(PRESETS[preset]) == PRESETS[preset]


@pytest.mark.parametrize("name", RULES)
def test_json_gives_back_the_config_of_every_rule(name):
    config = TrainConfig(Quadratic(), RULES[name][1]())
    assert through_json(config) == config
    assert config_name(config.rule) == name


def test_json_gives_back_options_that_are_not_defaults():
    config = TrainConfig(
        MLP("digits", hidden=(3, 2), init_scale=None),
        LSTMConfig(hidden_size=4, p=None, scale=0.3),
        MetaLoss("linear", "inner_valid", "inner_valid"),
        clip=None,
        order=2,
        estimator="truncated",
        checkpoint_steps=3,
        lengths=Lengths("growing", 7, 5),
        stagger=2,
        outer_lr=1e-3 / 3,
        seed=-(2**63),
    )
    assert through_json(config) == config
    assert isinstance(through_json(config).task.hidden, tuple)


def test_json_names_every_field():
    values = to_json(TrainConfig(MLP("mnist"), LSTMConfig(p=5.0)))
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert values["task"]["name"] == "mlp" and values["task"]["dataset"] == "mnist"
    assert values["rule"]["name"] == "lstm" and values["rule"]["p"] == 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (tampered(task={"name": "nonsense"}), "nonsense"),
        (tampered(task={"name": "quadratic", "size": 3}), "size"),
        (tampered(task={"dim": 3}), "name"),
        (tampered(task="quadratic"), "not a training configuration"),
        (tampered(rule={"name": "nonsense"}), "unknown rule 'nonsense'"),
        (tampered(rule={"name": "lstm", "units": 3}), r"unknown options \['units'\]"),
        (tampered(rule={"name": "lstm", "hidden_size": 0}), "hidden_size and layers must be at least 1"),
        (tampered(meta_loss={"weighting": "mean", "splits": "train"}), "splits"),
        (tampered(meta_loss={"split": "test"}), "meta-training uses the splits"),
        (tampered(learning_rate=0.1), "learning_rate"),
        (tampered(horizon="100"), "horizon must be an integer"),
        (tampered(clip="1"), "not a training configuration"),
        ({"horizon": 100}, "'task'"),
        ([], "not a training configuration"),
        (None, "not a training configuration"),
    ],
)
def test_unknown_names_fields_and_types_in_json_are_value_errors(values, message):
    with pytest.raises(ValueError, match=message):
        from_json(values)


COUNTS = ("horizon", "truncation", "n_tasks", "outer_steps", "validate_every", "valid_tasks", "checkpoint_every")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2.5, math.nan, None])
def test_counts_are_integers_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value}"):
        TrainConfig(Quadratic(), **{name: value})


@pytest.mark.parametrize("name", ["outer_lr", "sigma", "clip", "divergence"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_sizes_are_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
        TrainConfig(Quadratic(), **{name: value})


@pytest.mark.parametrize("name", ["outer_lr", "sigma", "divergence"])
def test_only_clipping_can_be_switched_off(name):
    assert TrainConfig(Quadratic(), clip=None).clip is None
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got None"):
        TrainConfig(Quadratic(), **{name: None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_outer_lr": -0.1}, r"final_outer_lr is a fraction in \[0, 1\], got -0.1"),
        ({"final_outer_lr": 1.1}, "final_outer_lr is a fraction"),
        ({"final_outer_lr": math.nan}, "final_outer_lr is a fraction"),
        ({"seed": 2**63}, f"seed must be an integer of 64 bits, got {2**63}"),
        ({"seed": -(2**63) - 1}, "seed must be an integer of 64 bits"),
        ({"seed": 0.5}, "seed must be an integer of 64 bits, got 0.5"),
        ({"truncation": 11, "horizon": 10}, r"truncation \(11\) must not exceed horizon \(10\)"),
        ({"estimator": "recorded", "order": 2}, "recorded gradients are first-order"),
        ({"estimator": "exact"}, "estimator is one of .*'pes', 'nres'.* and order 1 or 2, got 'exact' and 1"),
        ({"order": 3}, "order 1 or 2, got 'auto' and 3"),
    ],
)
def test_options_out_of_range_or_in_contradiction_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(Quadratic(), **options)


def test_extreme_values_that_are_allowed():
    config = TrainConfig(Quadratic(), horizon=1, truncation=1, final_outer_lr=0, seed=2**63 - 1)
    assert (config.final_outer_lr, config.seed) == (0, 2**63 - 1)
    assert TrainConfig(Quadratic(), final_outer_lr=1).final_outer_lr == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Recorded()),
        ({"order": 2}, Truncated(2)),
        ({"estimator": "recorded"}, Recorded()),
        ({"estimator": "truncated"}, Truncated(1)),
        ({"estimator": "truncated", "order": 2}, Truncated(2)),
        ({"estimator": "es", "sigma": 0.1}, ES(0.1)),
        ({"estimator": "pes", "sigma": 0.1}, PES(0.1)),
        ({"estimator": "nres"}, NRES(TrainConfig.sigma)),
    ],
)
def test_estimators_by_name_where_auto_takes_recorded_gradients_for_first_order_only(options, expected):
    assert TrainConfig(Quadratic(), **options).build_estimator() == expected


def module_task(**changes) -> ModuleTask:
    inputs = torch.arange(60.0).reshape(20, 3)
    arguments = {"module": lambda: torch.nn.Linear(3, 2), "loss_fn": torch.nn.functional.mse_loss, "batch_size": 4}
    arguments |= {"data": (inputs, inputs[:, :2])} | changes
    return ModuleTask(**arguments)


def test_a_family_made_in_python_is_described_and_needed_again():
    values = json.loads(json.dumps(to_json(TrainConfig(module_task()))))
    assert values["task"]["python"] == "tasks.module.ModuleTask" and values["task"]["batch_size"] == 4
    again = module_task()
    assert from_json(values, again).task is again
    with pytest.raises(ValueError, match=r"are a tasks.module.ModuleTask made in Python: continue it there"):
        from_json(values)
    with pytest.raises(ValueError, match=r"are a tasks.module.ModuleTask, not a tasks.quadratic.Quadratic"):
        from_json(values, Quadratic())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 5}, "batch_size was 4 and is 5"),
        ({"loss_fn": torch.nn.functional.l1_loss}, "loss was"),
        ({"module": lambda: torch.nn.Linear(3, 2, bias=False)}, "parameters was"),
        ({"module": lambda: torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())}, "parameters was"),
        ({"data": (torch.arange(60.0).reshape(20, 3), torch.zeros(20, 2))}, "data was"),
    ],
)
def test_other_tasks_than_those_of_the_run_are_refused_with_what_has_changed(changes, named):
    values = json.loads(json.dumps(to_json(TrainConfig(module_task()))))
    with pytest.raises(ValueError, match=f"others than those given: .*{named}"):
        from_json(values, module_task(**changes))


@dataclasses.dataclass(frozen=True)
class Tilted(Quadratic):
    """A dataclass that no table lists."""

    angle: float = 0.0


def test_a_dataclass_made_in_python_is_described_by_its_fields():
    values = json.loads(json.dumps(to_json(TrainConfig(Tilted(angle=0.5)))))
    assert from_json(values, Tilted(angle=0.5)).task == Tilted(angle=0.5)
    with pytest.raises(ValueError, match=r"angle was 0.5 and is 0.25"):
        from_json(values, Tilted(angle=0.25))


def test_a_rule_without_a_name_is_refused_with_the_place_to_add_it():
    with pytest.raises(ValueError, match=r"object has no name in l2o.rules.RULES"):
        config_name(object())
    with pytest.raises(ValueError, match=r"object has no name in l2o.rules.RULES"):
        TrainConfig(Quadratic(), object()).build_rule(None)


@pytest.mark.parametrize("name", RULES)
def test_build_rule_makes_the_rule_of_the_config_with_weights_from_the_generator_alone(name, generator):
    config = TrainConfig(Quadratic(), RULES[name][1]())
    first = config.build_rule(generator.manual_seed(3)).state_dict()
    second = config.build_rule(generator.manual_seed(3)).state_dict()
    assert type(config.build_rule(generator)) is RULES[name][0]
    assert first and all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"meta-training uses the splits \('train', 'inner_valid'\) only, got 'test'"),
        ({"inner_split": "outer_valid"}, "only, got 'outer_valid'"),
        ({"weighting": "median"}, "weighting is mean, linear or final, got 'median'"),
    ],
)
def test_meta_losses_refuse_test_and_validation_data(options, message):
    with pytest.raises(ValueError, match=message):
        MetaLoss(**options)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["digits"].seed = 1  # type: ignore[misc]
    assert SGDConfig() == SGDConfig()


def test_a_run_can_start_from_another_rules_weights(tmp_path):
    rule = TrainConfig(Quadratic(), LSTMConfig(hidden_size=3)).build_rule(torch.Generator().manual_seed(1))
    save_rule(rule, tmp_path / "rule")
    config = TrainConfig(Quadratic(), LSTMConfig(hidden_size=3), start_from=str(tmp_path / "rule"))
    started = config.build_rule(torch.Generator().manual_seed(2))
    assert all(torch.equal(p, q) for p, q in zip(started.parameters(), rule.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in started.parameters())


def test_a_run_can_start_from_weights_with_another_constant(tmp_path):
    rule = TrainConfig(Quadratic(), LSTMConfig(hidden_size=3)).build_rule(None)
    save_rule(rule, tmp_path / "rule")
    config = TrainConfig(Quadratic(), LSTMConfig(hidden_size=3, scale=0.2), start_from=str(tmp_path / "rule"))
    with pytest.warns(UserWarning, match=r"holds a rule with .*scale=0\.1,.*asks for .*scale=0\.2,.*go on with"):
        started = config.build_rule(torch.Generator().manual_seed(2))
    grads, state = torch.randn(5), rule.init_coordinates(torch.zeros(5))
    updates = [either.update(grads, state, torch.tensor(0))[0] for either in (rule, started)]
    torch.testing.assert_close(updates[1], 2 * updates[0])


def test_a_sobolev_rule_can_start_from_the_rule_that_it_filters(tmp_path):
    rule = TrainConfig(Quadratic(), LSTMConfig(hidden_size=3)).build_rule(None)
    save_rule(rule, tmp_path / "rule")
    asked = SobolevLSTMConfig(hidden_size=3, cutoff=0.2)
    config = TrainConfig(Quadratic(), asked, start_from=str(tmp_path / "rule"))
    with pytest.warns(UserWarning, match="go on with"):
        started = config.build_rule(torch.Generator().manual_seed(2))
    assert isinstance(started, SobolevLSTM) and started.config == asked
    assert all(torch.equal(p, q) for p, q in zip(started.coordinates.parameters(), rule.parameters(), strict=True))
    assert started.log_cutoff.exp().item() == pytest.approx(0.2)


@pytest.mark.parametrize("other", [LSTMConfig(hidden_size=4), SGDConfig(), SobolevLSTMConfig(hidden_size=4)])
def test_weights_of_another_size_or_rule_are_refused(tmp_path, other):
    save_rule(TrainConfig(Quadratic(), LSTMConfig(hidden_size=3)).build_rule(None), tmp_path / "rule")
    config = TrainConfig(Quadratic(), other, start_from=str(tmp_path / "rule"))
    with pytest.raises(ValueError, match=r"holds a rule with .*hidden_size=3.*asks for "):
        config.build_rule(None)


# ---------------------------------------------------------------- rules that do not fit the run

WITHOUT_WEIGHTS = ("ista", "fista", "amp", "niht", "admm", "condat-vu", "support-newton")


@pytest.mark.parametrize("name", MODEL_BASED)
def test_rules_without_weights_are_refused_for_there_is_nothing_to_learn(name):
    rule = MODEL_BASED[name][1]()
    if name in WITHOUT_WEIGHTS:
        with pytest.raises(ValueError, match=r"has no weights, so there is nothing to learn; .*with l2o.solve"):
            TrainConfig(Lasso(), rule)
    else:
        config = TrainConfig(Lasso(getattr(rule, "rows", 250), getattr(rule, "columns", 500)), rule)
        assert list(config.build_rule(torch.Generator().manual_seed(0)).parameters())


@pytest.mark.parametrize("name", ["es", "pes", "nres"])
@pytest.mark.parametrize("rule", [ALISTAConfig(), ProximalLSTMConfig()], ids=lambda rule: type(rule).__name__)
def test_evolution_strategies_refuse_rules_that_step_on_all_tasks_at_once(name, rule):
    with pytest.raises(
        ValueError, match=f"--estimator {name} runs every task with weights of its own, and .*(LISTA|LSTM) steps"
    ):
        TrainConfig(Lasso(), rule, estimator=name)
    assert TrainConfig(Lasso(), LSTMConfig(), estimator=name).estimator == name


def test_recorded_gradients_refuse_rules_that_are_not_coordinatewise():
    with pytest.raises(ValueError, match="recorded gradients are for coordinate-wise rules, and ALISTA is none"):
        TrainConfig(Lasso(), ALISTAConfig(), estimator="recorded")


@pytest.mark.parametrize("task", [Quadratic(), MLP("digits")], ids=lambda task: type(task).__name__)
def test_tasks_without_a_structure_are_refused_by_their_own_name(task):
    with pytest.raises(ValueError, match=f"ALISTA steps on a problem's structure, which {type(task).__name__} has not"):
        TrainConfig(task, ALISTAConfig())


def test_a_share_of_tasks_without_a_structure_is_called_by_the_name_of_the_family(generator):
    with pytest.raises(ValueError, match="steps on a problem's structure, which Quadratic has not"):
        start(ALISTA(), Sharded(Quadratic(), 2, slice(0, 2)), 2, generator)
