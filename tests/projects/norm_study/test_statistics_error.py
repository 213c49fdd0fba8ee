"""The errors of a layer's statistics, measured while a small network trains."""

from projects.norm_study import statistics_error


def test_compensated_means_are_exact_and_variances_better_than_naive_ones(monkeypatch):
    monkeypatch.setattr(statistics_error, 'SAMPLES', 80)  # 20 iterations
    result = statistics_error.run('digits-one', batch=4, lr_factor=1.0, root=None, runs=1, every=10)
    (measured,) = result['curve']
    assert measured['mean']['own|Taylor, all positions'] < 1e-5 < measured['mean']['own|naive']
    assert measured['var']['own|Taylor, all positions'] < measured['var']['own|naive']
