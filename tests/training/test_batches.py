"""training.batches: what a step consists of, on any number of processes and with any accumulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.batches import (
    LengthSchedule,
    Passes,
    PassKey,
    PassSampler,
    SequenceBatches,
    TokenBatches,
    file_order,
    length_order,
    random_order,
)


def sequences(samples, batch, seed=0, processes=1, accumulation=1, lanes=1):
    return SequenceBatches(random_order(samples, seed), processes, accumulation, samples, batch, lanes)


def epoch_of(plan, epoch):
    return np.concatenate([plan.step(epoch, step) for step in range(plan.steps_per_epoch)]).tolist()


# -- order ---------------------------------------------------------------------------------------------------------


def test_a_random_order_is_a_function_of_seed_and_epoch():
    order = random_order(50, 0)
    assert sorted(order(3)) == list(range(50))
    assert order(3).tolist() == random_order(50, 0)(3).tolist()
    assert order(3).tolist() != order(4).tolist()
    assert order(3).tolist() != random_order(50, 1)(3).tolist()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(3, 9)), min_size=1, max_size=40), st.integers(0, 5))
def test_sequence_length_warm_up_sorts_by_length_inside_genomes_in_the_given_order(sequences, epoch):
    genomes, lengths = np.array(sequences).T
    order = length_order(lengths, genomes, seed=0)(epoch)
    assert sorted(order) == list(range(len(sequences)))
    assert [sequences[index] for index in order] == sorted(sequences)


def test_equally_long_sequences_change_their_order_with_the_epoch():
    order = length_order(np.full(30, 5), np.zeros(30), seed=0)
    assert order(0).tolist() != order(1).tolist()


# -- a fixed number of sequences per step --------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_takes_every_sequence_and_fills_its_last_step(samples, batch, epoch, seed):
    plan = sequences(samples, batch, seed)
    taken = epoch_of(plan, epoch)
    assert len(taken) == plan.steps_per_epoch * batch < samples + batch
    assert sorted(taken[:samples]) == list(range(samples))


@given(st.integers(1, 300), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]))
def test_steps_do_not_depend_on_processes_and_accumulation(samples, per_pass, processes, accumulation):
    batch = per_pass * processes * accumulation
    shared = sequences(samples, batch, processes=processes, accumulation=accumulation)
    assert epoch_of(shared, 1) == epoch_of(sequences(samples, batch), 1)


@given(st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3))
def test_lanes_take_every_sequence(samples, lanes, per_lane):
    plan = sequences(samples, lanes * per_lane, lanes=lanes)
    assert set(epoch_of(plan, 0)) == set(range(samples))


def test_each_process_reads_its_own_part_of_the_epoch_with_lanes():
    plan = SequenceBatches(file_order(80), 2, 2, 80, 8, lanes=4)
    read = [set(), set()]
    for step in range(plan.steps_per_epoch):
        for accumulation in range(2):
            for process in range(2):
                read[process].update(plan.samples(PassKey(0, step, accumulation, process)).tolist())
    assert read == [set(range(40)), set(range(40, 80))]


# -- a fixed number of tokens per step -----------------------------------------------------------------------------


@given(
    st.lists(st.integers(3, 30), min_size=200, max_size=400),
    st.sampled_from([1, 2, 3]),
    st.integers(60, 200),
    st.integers(400, 900),
)
def test_no_pass_exceeds_the_token_budget_and_every_sequence_is_taken_once(lengths, processes, budget, step_tokens):
    lengths = np.array(lengths)
    try:
        plan = TokenBatches(random_order(len(lengths), 0), processes, lengths, step_tokens, budget)
    except ValueError as error:  # too little for so many passes
        assert "too small" in str(error)
        return
    sampler = PassSampler(plan)
    sampler.set_epoch(2)
    passes = [plan.samples(key) for key in sampler]
    assert all(0 < lengths[indices].sum() <= budget for indices in passes)
    assert sorted(np.concatenate(passes)) == list(range(len(lengths)))
    steps = [lengths[plan.step(2, step)].sum() for step in range(plan.steps_per_epoch)]
    assert max(steps) - min(steps) <= 2 * lengths.max()
    assert abs(np.mean(steps) - step_tokens) <= step_tokens / 2


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_steps_by_tokens_do_not_depend_on_the_processes(processes):
    lengths = np.random.default_rng(0).integers(5, 60, 3000)
    one = TokenBatches(random_order(3000, 0), 1, lengths, 4000, 500)
    many = TokenBatches(random_order(3000, 0), processes, lengths, 4000, 300)
    for step in range(one.steps_per_epoch):
        assert sorted(one.step(0, step)) == sorted(many.step(0, step))


def test_passes_of_a_step_are_nearly_equally_large():
    lengths = np.random.default_rng(0).integers(5, 60, 3000)
    plan = TokenBatches(random_order(3000, 0), 4, lengths, 4000, 600)
    tokens = [lengths[plan.samples(PassKey(0, 0, a, p))].sum() for a in range(plan.accumulation) for p in range(4)]
    assert max(tokens) - min(tokens) <= 20  # of about 490


def test_a_budget_below_two_sequences_is_refused_with_advice():
    with pytest.raises(ValueError, match="raise --per_device_train_batch_tokens to 1,000 at least"):
        TokenBatches(file_order(9), 1, np.full(9, 500), 4000, 600)


def test_steps_that_leave_passes_empty_are_refused_with_advice():
    with pytest.raises(ValueError, match="set --global_batch_tokens to 4,500 or more"):
        TokenBatches(file_order(90), 8, np.full(90, 500), 1000, 1000)


# -- lengths by step -----------------------------------------------------------------------------------------------


def test_a_length_schedule_goes_by_steps():
    schedule = LengthSchedule(["0:64", "100:128", "1000:2000"])
    assert [schedule(step) for step in (0, 99, 100, 999, 1000, 10**6)] == [64, 64, 128, 128, 2000, 2000]
    assert LengthSchedule([])(5) is None


@pytest.mark.parametrize("stages", [["64"], ["0:a"], ["5:64"], ["0:64", "0:128"], ["0:2"], ["0:64:3"]])
def test_a_length_schedule_that_makes_no_sense_is_refused(stages):
    with pytest.raises(ValueError, match="sequence_length_schedule"):
        LengthSchedule(stages)


# -- what the data loader asks for ---------------------------------------------------------------------------------


def test_the_length_of_a_pass_follows_the_step_of_the_whole_run():
    plan = sequences(20, 5)
    passes = Passes(range(20), plan, LengthSchedule(["0:64", "6:128"]), list)
    assert {key.max_length for key in passes.keys(PassKey(1, 1, 0, 0))} == {64}
    assert {key.max_length for key in passes.keys(PassKey(1, 2, 0, 0))} == {128}  # 4 steps an epoch


def test_passes_are_dealt_out_one_process_after_the_other():
    sampler = PassSampler(sequences(8, 4, processes=2, accumulation=2))
    assert len(sampler) == 8
    assert [(key.accumulation, key.process) for key in list(sampler)[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
