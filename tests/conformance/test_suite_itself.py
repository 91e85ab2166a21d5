"""The suite finds what is broken: each deliberately broken optimizer fails the tests of its clause and no others."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

# Class in broken.py -> the tests that fail, without their "test_".
EXPECTED = {
    "Correct": set(),
    "NeverCallsTheClosure": {"step_calls_the_closure_with_gradients_enabled", "step_returns_the_loss_of_the_closure"},
    "DropsTheLoss": {"step_returns_the_loss_of_the_closure"},
    "CallsTheClosureWithoutGradients": {
        "step_calls_the_closure_with_gradients_enabled",
        "step_returns_the_loss_of_the_closure",
        "step_uses_the_gradients_of_the_closure",
    },
    "CrashesWithoutGradient": {
        "a_step_without_any_gradient_does_nothing",
        "frozen_parameters_are_accepted_and_left_alone",
        "gradients_may_come_late",
        "gradients_may_go_missing",
        "parameters_without_gradient_are_left_alone",
        "state_belongs_to_parameters",
        "step_calls_the_closure_with_gradients_enabled",
        "step_returns_the_loss_of_the_closure",
        "step_uses_the_gradients_of_the_closure",
    },
    "CrashesOnScalars": {"parameters_have_any_number_of_dimensions"},
    "IgnoresTheGroupsLr": {"a_changed_lr_takes_effect", "groups_have_their_own_lr", "groups_may_change_after_loading"},
    "OverlooksNewGroups": {
        "an_added_group_moves_as_a_fresh_optimizer_would_move_it",
        "groups_are_added_at_any_time",
        "groups_may_change_after_loading",
    },
    "ReplacesTheMemory": {"step_updates_in_place"},
    "WidensParameters": {
        "dtypes_may_be_mixed",
        "loading_a_saved_state_continues_bit_for_bit",
        "parameters_of_every_real_dtype_are_updated",
    },
    "ChangesGradients": {"step_leaves_gradients_alone"},
    "IgnoresSparseGradients": {"sparse_gradients_are_used_or_refused"},
    "LosesTheStateWhenLoading": {
        "a_scheduler_resumes_with_its_optimizer",
        "loading_a_saved_state_continues_bit_for_bit",
        "loading_replaces_the_state_of_a_used_optimizer",
    },
    "RoundsTheStateWhenLoading": {"loading_a_saved_state_continues_bit_for_bit"},
    "KeepsItsMemoryElsewhere": {
        "a_scheduler_resumes_with_its_optimizer",
        "copies_continue_independently",
        "loading_a_saved_state_continues_bit_for_bit",
        "loading_an_unused_state_resets",
        "loading_replaces_the_state_of_a_used_optimizer",
    },
    "SavesObjects": {
        "groups_may_change_after_loading",
        "loading_a_saved_state_continues_bit_for_bit",
        "loading_restores_the_options_of_groups",
    },
    "CannotBePickled": {"copies_continue_independently"},
    "HidesItsGroups": {"repr_shows_the_groups"},
    "CountsParametersItself": {
        "a_parameter_in_two_groups_is_refused",
        "a_state_of_other_groups_is_refused",
        "an_added_group_moves_as_a_fresh_optimizer_would_move_it",
        "generators_lists_and_groups_are_accepted",
        "groups_have_their_own_lr",
        "groups_move_as_one_group_would",
        "keys_of_the_user_stay_in_the_group",
        "loading_restores_the_options_of_groups",
        "named_parameters_are_accepted_and_saved",
        "repr_shows_the_groups",
        "state_dict_has_the_common_form",
        "what_is_no_parameter_is_refused",
    },
}
AT_LEAST = {
    # One memory for all instances spoils every test that compares two.
    "SharesItsMemory": {"the_same_start_gives_the_same_end", "copies_continue_independently"},
}
# Neither depends on what the broken ones break; compiling takes half the time of the suite.
LEFT_OUT = "not compiled and not (schedulers and not StepLR)"


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Broken optimizer -> the tests that fail, from one run of the suite on all."""
    report, folder = tmp_path_factory.mktemp("suite") / "report.xml", Path(__file__).parent
    factories = [word for name in EXPECTED | AT_LEAST for word in ("--factory", f"conformance.broken:{name}")]
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    run = subprocess.run(
        [*command, f"--junitxml={report}", *factories],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=folder.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    found = {name: set() for name in EXPECTED | AT_LEAST}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, variant = case.get("name", "").removeprefix("test_").partition("[conformance.broken:")
        if case.find("failure") is not None or case.find("error") is not None:
            found[variant.rstrip("]").split("-")[0]].add(test)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_optimizer_fails_its_clauses_and_no_others(failures, name):
    assert failures[name] == EXPECTED[name]


@pytest.mark.parametrize("name", AT_LEAST)
def test_a_broken_optimizer_fails_its_clauses(failures, name):
    assert failures[name] >= AT_LEAST[name]


@pytest.mark.parametrize("address", ["conformance.broken:DoesNotExist", "no_such_module:Adam", "torch.optim"])
def test_a_factory_that_is_not_there_is_one_line_and_no_success(address):
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider", "--factory", address]
    run = subprocess.run(command, cwd=folder.parents[1], capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout + run.stderr
    assert f"--factory {address}: " in run.stderr and "expected MODULE:CALLABLE" in run.stderr
