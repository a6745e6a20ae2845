"""Hold the statistics of studies against SciPy, statsmodels and arch.

    cargo run -p salsa-algo --example study_statistics 40 > studies.jsonl
    python crates/salsa-algo/tests/stats.py studies.jsonl
    # in an environment with numpy, scipy, statsmodels and arch (2.4, 1.17, 0.15 and 8.0 were used)

The example prints random studies with what `salsa_algo::stats::study` makes of them; here everything is computed anew from
the same numbers:
- t intervals and p-values: `scipy.stats.ttest_rel`, `t.interval`;
- bootstraps: the counter-based random numbers are computed anew in Python. Where a seed has one value, SciPy (percentile,
  BCa) and arch (bootstrap-t) draw by them, as generators of theirs; with several prompts the nested draws are numpy's;
- frontiers: `numpy.interp` on the axis, the mean over KL by `scipy.integrate.quad`;
- sign test: `binomtest`; Holm: `multipletests`; power: `scipy.stats.nct` and `TTestPower`; quantiles: `scipy.stats.t`.

Prints the largest relative difference of each (of numbers below 1 the absolute one), and fails above the tolerance beside
it: 1e-12 for closed forms; 1e-9 where SciPy integrates or sums a noncentral t.
"""
import json
import math
import sys

import numpy as np
from arch.bootstrap import IIDBootstrap
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

LARGEST = {}
TOLERANCE = {"mean over KL": 1e-9, "power": 1e-9}
GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def compare(name, ours, theirs):
    ours, theirs = np.asarray(ours, float).ravel(), np.asarray(theirs, float).ravel()
    assert ours.shape == theirs.shape, (name, ours, theirs)
    same = ours == theirs  # infinite ends too
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)))
    largest, count = LARGEST.get(name, (0.0, 0))
    worst = float(difference.max()) if len(difference) else 0.0
    LARGEST[name] = (math.nan if math.isnan(worst) else max(largest, worst), count + len(difference))


# The counter-based random numbers: bits(seed, stream, index) for many indices.
def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def below(seed, stream, index, n):
    key = (mix(mix((seed + GOLDEN) & MASK) ^ stream) + GOLDEN) & MASK
    return (mix((key + index * GOLDEN) & MASK) * n) >> 64


def drawn_seeds(seed, resamples, n):
    return np.array([[below(seed, 2 * r, i, n) for i in range(n)] for r in range(resamples)])


class Drawn(np.random.Generator):
    """A generator whose whole numbers are given: SciPy takes them as a table, arch row by row."""

    def __new__(cls, table):
        return super().__new__(cls, np.random.PCG64(0))

    def __init__(self, table):
        super().__init__(np.random.PCG64(0))
        self.table, self.row = table, 0

    def integers(self, low, high=None, size=None, **_):
        shape = (size,) if np.isscalar(size) else tuple(size)
        if len(shape) == 2:
            rows = self.table[self.row : self.row + shape[0]]
        else:
            rows = self.table[self.row]
        self.row += shape[0] if len(shape) == 2 else 1
        assert rows.shape == shape, (rows.shape, shape)
        return rows


RESAMPLES, LEVEL = 2000, 0.9


def nested_means(seed, samples):
    """The means of each place in each resample."""
    n, rows = len(samples), []
    for r in range(RESAMPLES):
        drawn = [samples[below(seed, 2 * r, i, n)] for i in range(n)]
        prompts = [[below(seed, 2 * r + 1, (i << 32) | j, len(v)) for j in range(len(v))] for i, v in enumerate(drawn)]
        rows.append([np.mean(np.asarray(v)[p]) for v, p in zip(drawn, prompts)])
    return np.array(rows)


def numpy_bootstraps(seed, samples):
    seed_means = np.array([np.mean(values) for values in samples])
    mean, error = seed_means.mean(), stats.sem(seed_means)
    means = nested_means(seed, samples)
    centres = means.mean(axis=1)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile((centres - mean) / stats.sem(means, axis=1), tails)
    left_out = np.array([np.delete(seed_means, s).mean() for s in range(len(samples))])
    u = left_out.mean() - left_out
    acceleration = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    bias = stats.norm.ppf(np.mean(centres < mean) + np.mean(centres == mean) / 2)
    moved = bias + stats.norm.ppf(tails)
    shares = stats.norm.cdf(bias + moved / (1 - acceleration * moved))
    return {"percentile": np.quantile(centres, tails), "studentized": [mean - high * error, mean - low * error],
            "bca": np.quantile(centres, shares)}


def peers_bootstraps(seed, samples):
    """SciPy's and arch's intervals of one value per seed, from our draws."""
    values = np.array([value for (value,) in samples])
    n = len(values)
    table = drawn_seeds(seed, RESAMPLES, n)

    def scipys(method):
        how = dict(n_resamples=RESAMPLES, confidence_level=LEVEL, method=method, rng=Drawn(table), vectorized=True)
        result = stats.bootstrap((values,), lambda x, axis: np.mean(x, axis=axis), **how)
        return list(result.confidence_interval)

    def arch_studentized():
        # arch takes its standard error as given; equal draws have none, and are infinite in both programs.
        bootstrap = IIDBootstrap(values, seed=Drawn(table))
        with np.errstate(all="ignore"):
            ends = bootstrap.conf_int(np.mean, RESAMPLES, method="studentized", size=LEVEL,
                                      std_err_func=lambda _, x: stats.sem(x))
        return ends.ravel()

    return {"percentile": scipys("percentile"), "bca": scipys("BCa"), "studentized": arch_studentized()}


def samples(row):
    first, second = row["first"], row["second"]
    differences = [list(np.subtract(a, b)) for a, b in zip(first, second)]
    for at, arm in enumerate([differences, first]):
        means = [np.mean(values) for values in arm]
        mean, ends = row["t"][at]
        compare("mean over seeds", mean, np.mean(means))
        compare("t interval", ends, stats.t.interval(LEVEL, len(means) - 1, np.mean(means), stats.sem(means)))
        ours = {name: row[name][at][1] for name in ["percentile", "studentized", "bca"]}
        for name, ends in numpy_bootstraps(row["seed"], arm).items():
            compare(f"{name}, nested", ours[name], ends)
        if all(len(values) == 1 for values in arm):
            for name, ends in peers_bootstraps(row["seed"], arm).items():
                compare(f"{name}, {'arch' if name == 'studentized' else 'SciPy'}", ours[name], ends)
    result = stats.ttest_rel(*[[np.mean(values) for values in arm] for arm in [first, second]])
    compare("p-value", row["p"], result.pvalue)
    compare("average of runs", row["average"], np.mean([first[0], second[0]], axis=0))


def signed_root(kl):
    return np.copysign(np.sqrt(np.abs(kl)), kl)


def frontier(row):
    place = signed_root if row["root"] else np.asarray
    arms = [[np.array(points) for points in row[arm]] for arm in ["first", "second"]]

    def reward(points, x):
        inside = points[0, 0] <= x <= points[-1, 0]
        return np.interp(place(x), place(points[:, 0]), points[:, 1]) if inside else np.nan

    def hold(name, ours, numbers):
        left = [number for number in numbers if not np.isnan(number)]
        if not left:
            assert ours is None
            return
        compare(name, ours[0], np.mean(left))
        if len(left) > 1:
            compare(f"{name}, interval", ours[1], stats.t.interval(LEVEL, len(left) - 1, np.mean(left), stats.sem(left)))
        else:
            assert ours[1] is None

    for kl, (band, out), (at, apart) in zip(row["kl"], row["band"], row["at"]):
        first, second = [np.array([reward(points, kl) for points in arm]) for arm in arms]
        hold("frontier", band, first)
        hold("difference at KL", at, first - second)
        assert out == list(np.flatnonzero(np.isnan(first))), (out, first)
        assert apart == list(np.flatnonzero(np.isnan(first - second)))

    def mean_difference(a, b):
        low, high = max(place(a[0, 0]), place(b[0, 0])), min(place(a[-1, 0]), place(b[-1, 0]))
        if low > high:
            return np.nan
        knots = sorted(x for x in np.concatenate([place(a[:, 0]), place(b[:, 0])]) if low < x < high)
        difference = lambda x: np.interp(x, place(a[:, 0]), a[:, 1]) - np.interp(x, place(b[:, 0]), b[:, 1])
        return integrate.quad(difference, low, high, points=knots, epsabs=1e-12, limit=200)[0] / (high - low)

    numbers = [mean_difference(a, b) for a, b in zip(*arms)]
    hold("mean over KL", row["over"], numbers)
    assert row["excluded"] == list(np.flatnonzero(np.isnan(numbers)))


def selection(row):
    means = np.array([[np.mean(values) for values in setting] for setting in row["validation"]])
    across = [int(means.mean(axis=1).argmax())] * means.shape[1]
    per_seed = [int(best) for best in means.argmax(axis=0)]
    for expected, (settings, values) in zip([across, per_seed], row["chosen"]):
        assert settings == expected, (settings, expected)
        for seed, setting in enumerate(settings):
            compare("selected test scores", values[seed], row["test"][setting][seed])


def tests(row):
    signs = [difference for difference in row["differences"] if difference]
    expected = stats.binomtest(sum(d > 0 for d in signs), len(signs)).pvalue if signs else 1.0
    compare("sign test", row["sign"], expected)
    compare("Holm", row["holm"], multipletests(row["p_values"], method="holm")[1])
    n, alpha, effect = row["seeds"], 1 - row["level"], row["effect"] / 0.9
    quantile = stats.t.ppf(1 - alpha / 2, n - 1)
    compare("t quantile", row["t"], quantile)
    delta = effect * math.sqrt(n)
    compare("power", row["power"], stats.nct.sf(quantile, n - 1, delta) + stats.nct.cdf(-quantile, n - 1, delta))
    compare("power", row["power"], TTestPower().power(effect, n, alpha))
    enough = TTestPower().power(effect, np.arange(2, row["needed"] + 1), alpha) >= row["wanted"]
    assert enough[-1] and not enough[:-1].any(), row
    compare("seeds needed", row["needed"], 2 + int(enough.argmax()))


def main():
    rows = [json.loads(line) for line in open(sys.argv[1])]
    assert rows, "no studies"
    for row in rows:
        globals()[row["kind"]](row)
    failed = False
    for name, (largest, count) in LARGEST.items():
        wrong = not largest <= TOLERANCE.get(name, 1e-12)
        failed |= wrong
        print(f"{name:28} {count:6} numbers, largest difference {largest:.1e}{'   TOO LARGE' if wrong else ''}")
    sys.exit(failed)


main()
