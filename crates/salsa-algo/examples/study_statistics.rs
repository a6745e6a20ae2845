//! Random studies and their statistics as JSON lines, for `crates/salsa-algo/tests/stats.py`, which recomputes them.
use salsa_algo::{
    random::{below, uniform},
    stats::{
        Resampling, student_t_quantile,
        study::{
            AtKl, Curve, KlAxis, Point, Scores, SeedCurve, SeedEstimate, SeedInterval, SeedSample, Test, Validation,
            average_runs, common_range, difference_over_kl, difference_over_seeds, differences_at_kl, frontier, holm,
            kl_values, mean_over_seeds, power, seeds_needed, sign_test,
        },
    },
};

fn main() {
    let count: u64 = std::env::args().nth(1).map_or(20, |count| count.parse().expect("a number of data sets"));
    for number in 0..count {
        print_samples(number);
        print_frontiers(number);
        print_selection(number);
        print_tests(number);
    }
}

fn print_samples(number: u64) {
    let seeds = 4 + number % 6;
    let longest = if number.is_multiple_of(4) { 1 } else { 30 };
    let prompts = |seed| 1 + below(number, 1, seed, longest);
    let arm = |stream: u64| -> Vec<SeedSample> {
        let value = |seed, i| uniform(number, stream + 10 * seed, i).powi(2) + uniform(number, 3, seed);
        // Multiples of 2^-10, whose sums are exact in any order: BCa counts which resampled means equal the sample's.
        let rounded = |value: f64| (1024.0 * value).round() / 1024.0;
        let values = |seed| (0..prompts(seed) as u64).map(|i| rounded(value(seed, i))).collect();
        (0..seeds).map(|seed| SeedSample { seed, values: values(seed) }).collect()
    };
    let (first, mut second) = (arm(4), arm(5));
    let how = Resampling { resamples: 2000, level: 0.9, seed: number };
    let intervals = [
        ("t", SeedInterval::StudentT { level: 0.9 }),
        ("percentile", SeedInterval::Percentile(how)),
        ("studentized", SeedInterval::Studentized(how)),
        ("bca", SeedInterval::Bca(how)),
    ];
    let shown = intervals.map(|(name, interval)| {
        let difference = difference_over_seeds(&first, &second, interval).expect("paired");
        let mean = mean_over_seeds(&first, interval).expect("usable");
        format!("\"{name}\":[{},{}]", estimate(&difference), estimate(&mean))
    });
    let runs: [&[f64]; 2] = [&first[0].values, &second[0].values];
    let world = average_runs(0, &runs).expect("equal lengths").values;
    second.reverse(); // pairing is by seed: the order must not matter
    let again = difference_over_seeds(&first, &second, SeedInterval::default()).expect("paired");
    second.reverse();
    println!(
        "{{\"kind\":\"samples\",\"seed\":{number},\"first\":{:?},\"second\":{:?},\"p\":{:?},\"average\":{world:?},{}}}",
        values(&first),
        values(&second),
        again.p_value().expect("several seeds"),
        shown.join(",")
    );
}

fn print_frontiers(number: u64) {
    let axis = if number.is_multiple_of(2) { KlAxis::SquareRoot } else { KlAxis::Linear };
    let arm = |stream: u64, scale: f64| -> Vec<SeedCurve> {
        let point = |seed: u64, i: u64| {
            let kl = scale * (i as f64 + uniform(number, stream, 100 * seed + i)) - 0.2;
            Point { kl, reward: kl.abs().sqrt() + uniform(number, stream + 1, 100 * seed + i) }
        };
        let points = |seed| (0..5).map(|i| point(seed, i)).collect::<Vec<Point>>();
        let curve = |seed| Curve::new(&points(seed), axis).expect("finite points");
        (0..5).map(|seed| SeedCurve { seed, curve: curve(seed) }).collect()
    };
    let (first, second) = (arm(20, 1.0), arm(30, 0.6));
    let range = common_range(first.iter().chain(&second).map(|one| &one.curve)).expect("an overlap");
    let mut kl = kl_values(range, axis, 7);
    kl.extend([-0.1, 4.0, 4.5]);
    let interval = SeedInterval::StudentT { level: 0.9 };
    let over = difference_over_kl(&first, &second, interval).expect("paired");
    let shown = |at: Vec<AtKl>| {
        let one =
            |at: &AtKl| format!("[{},{:?}]", at.estimate.as_ref().map_or("null".to_owned(), estimate), at.excluded);
        at.iter().map(one).collect::<Vec<String>>().join(",")
    };
    println!(
        "{{\"kind\":\"frontier\",\"root\":{},\"first\":{},\"second\":{},\"kl\":{kl:?},\"band\":[{}],\"at\":[{}],\"over\":{},\"excluded\":{:?}}}",
        axis == KlAxis::SquareRoot,
        curves(&first),
        curves(&second),
        shown(frontier(&first, &kl, interval).expect("usable")),
        shown(differences_at_kl(&first, &second, &kl, interval).expect("paired")),
        over.estimate.as_ref().map_or("null".to_owned(), estimate),
        over.excluded,
    );
}

fn print_selection(number: u64) {
    let settings = |stream: u64| -> Vec<Vec<SeedSample>> {
        let sample = |setting: u64, seed: u64| {
            let values = (0..1 + seed).map(|i| uniform(number, stream, 100 * (10 * setting + seed) + i)).collect();
            SeedSample { seed, values }
        };
        (0..5).map(|setting| (0..4).map(|seed| sample(setting, seed)).collect()).collect()
    };
    let (validation, test) = (settings(40), settings(41));
    let shown =
        |settings: &[Vec<SeedSample>]| settings.iter().map(|one| format!("{:?}", values(one))).collect::<Vec<_>>();
    let (validation_shown, test_shown) = (shown(&validation).join(","), shown(&test).join(","));
    let validation: Scores<Validation> = Scores::new(validation).expect("complete");
    let test: Scores<Test> = Scores::new(test).expect("complete");
    let chosen = [validation.select_across_seeds(), validation.select_per_seed()].map(|selection| {
        let settings: Vec<usize> = selection.choices().iter().map(|(_, setting)| *setting).collect();
        format!("[{settings:?},{:?}]", values(&selection.on_test(&test).expect("the same cells")))
    });
    println!(
        "{{\"kind\":\"selection\",\"validation\":[{validation_shown}],\"test\":[{test_shown}],\"chosen\":[{}]}}",
        chosen.join(",")
    );
}

fn print_tests(number: u64) {
    let n = 1 + below(number, 50, 0, 60) as u64;
    let differences: Vec<f64> = (0..n).map(|i| (10.0 * uniform(number, 51, i) - 4.0).round()).collect();
    let p_values: Vec<f64> = (0..1 + number % 8).map(|i| uniform(number, 52, i).powi(3)).collect();
    let effect = 0.2 + 2.0 * uniform(number, 53, 0);
    let (seeds, level) = (2 + below(number, 54, 0, 40), 0.9 + 0.09 * uniform(number, 55, 0));
    let wanted = 0.5 + 0.45 * uniform(number, 56, 0);
    println!(
        "{{\"kind\":\"tests\",\"differences\":{differences:?},\"sign\":{:?},\"p_values\":{p_values:?},\"holm\":{:?},\
         \"effect\":{effect:?},\"seeds\":{seeds},\"level\":{level:?},\"wanted\":{wanted:?},\"power\":{:?},\"needed\":{},\"t\":{:?}}}",
        sign_test(&differences).expect("numbers").p_value,
        holm(&p_values).expect("p-values"),
        power(effect, 0.9, seeds, level).expect("usable"),
        seeds_needed(effect, 0.9, wanted, level).expect("usable").expect("few enough"),
        student_t_quantile(level, (seeds - 1) as f64).expect("a level"),
    );
}

fn estimate(estimate: &SeedEstimate) -> String {
    let ends =
        estimate.interval.map_or("null".to_owned(), |interval| format!("[{:?},{:?}]", interval.low, interval.high));
    format!("[{:?},{}]", estimate.mean, ends.replace("inf", "Infinity"))
}

fn values(samples: &[SeedSample]) -> Vec<&[f64]> {
    samples.iter().map(|sample| &sample.values[..]).collect()
}

fn curves(curves: &[SeedCurve]) -> String {
    let points = |one: &SeedCurve| -> Vec<[f64; 2]> {
        one.curve.points().iter().map(|point| [point.kl, point.reward]).collect()
    };
    format!("{:?}", curves.iter().map(points).collect::<Vec<_>>())
}
