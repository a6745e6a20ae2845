use super::*;
use serde_json::json;

fn over(mean: f64) -> OverSeeds {
    let seeds = [("1", mean - 0.01), ("2", mean), ("3", mean + 0.01)];
    let seeds = seeds.into_iter().map(|(seed, value)| (seed.to_owned(), value)).collect();
    OverSeeds { mean, ci95: Some([mean - 0.02, mean + 0.02]), seeds }
}

fn numbers(reward: f64) -> ArmNumbers {
    ArmNumbers {
        reward: over(reward),
        proxy_score: over(1.0),
        kl: Some(over(10.0 * reward)),
        length: over(40.0),
        empty: over(0.0),
    }
}

fn arm(name: &str, reward: f64) -> StudyArm {
    let chosen = json!({"kl_coef": 0.1}).as_object().cloned().unwrap();
    let sets = Ordered(vec![("test".to_owned(), numbers(reward))]);
    StudyArm { arm: name.to_owned(), at: Map::new(), chosen, sets }
}

fn report() -> StudyReport {
    let claim = Claim {
        claim: "SALSA earns more than <b>PPO".to_owned(),
        measured: "difference".to_owned(),
        set: "test".to_owned(),
        difference: Some(over(0.05)),
        verdict: "supported".to_owned(),
        p: Some(0.01),
        p_holm: Some(0.02),
        signs: Some(Signs { above: 3, below: 0, p: 0.25 }),
        seeds_needed: Some(3),
        excluded: Vec::new(),
    };
    let point = |value: f64| FrontierPoint { value: json!(value), kl: over(10.0 * value), reward: over(value) };
    let band = |kl: f64| BandPoint { kl, reward: kl / 10.0, ci95: Some([kl / 20.0, kl / 5.0]) };
    let sweep = |value: f64| SweepPoint { value: json!(value), numbers: numbers(value) };
    StudyReport {
        title: "A <study>".to_owned(),
        measure: "gold_reward".to_owned(),
        anchor: Some("sft_a".to_owned()),
        sets: vec!["test".to_owned()],
        factors: vec![StudyFactor {
            name: "kl_coef".to_owned(),
            role: "chosen".to_owned(),
            values: vec![json!(0.1), json!(0.2)],
        }],
        arms: vec![arm("ppo", 0.5), arm("salsa", 0.55), arm("mkl", 0.5), arm("geometric", 0.5), arm("ema", 0.5)],
        claims: vec![claim],
        frontiers: vec![Frontier {
            arm: "salsa".to_owned(),
            at: Map::new(),
            set: "test".to_owned(),
            along: "kl_coef".to_owned(),
            points: vec![point(0.1), point(0.2)],
            band: vec![band(1.0), band(2.0)],
        }],
        sweeps: vec![Sweep {
            factor: "kl_coef".to_owned(),
            arm: "salsa".to_owned(),
            at: Map::new(),
            set: "test".to_owned(),
            points: vec![sweep(0.1), sweep(0.2)],
        }],
        ..StudyReport::default()
    }
}

#[test]
fn the_page_shows_claims_with_verdicts_and_defuses_names() {
    let page = report().html(&Ordered::new());
    assert!(page.contains("SALSA earns more than &lt;b&gt;PPO") && page.contains("A &lt;study&gt;"), "{page}");
    assert!(page.contains("<span class=\"conclusion supported\">supported</span>"), "{page}");
    assert!(page.contains("+0.050<small>+0.030 to +0.070</small>") && page.contains("3 above, 0 below"), "{page}");
    assert!(page.contains("<path class=\"band c4\"") && page.contains("KL to SFT A (nats per response)"), "{page}");
    assert!(!page.contains("<script") && !page.contains("NaN"), "{page}");
    for section in ["claims", "arms", "frontier", "sweep-kl_coef"] {
        assert!(page.contains(&format!("<section id=\"{section}\"")), "{section}");
    }
}

#[test]
fn arms_that_are_not_well_known_have_looks_of_their_own() {
    let report = report();
    let looks: Vec<_> = report.arms.iter().map(|arm| charts::look(&report, &arm.arm)).collect();
    for (i, look) in looks.iter().enumerate() {
        assert!(!looks[..i].contains(look), "{:?}", report.arms[i].arm);
    }
}

#[test]
fn the_numbers_read_back_and_a_study_without_any_has_a_page() {
    let text = serde_json::to_string(&report()).unwrap();
    assert_eq!(serde_json::from_str::<StudyReport>(&text).unwrap(), report());
    assert!(StudyReport::default().html(&Ordered::new()).contains("</html>"));
    let table = study_table(&report());
    assert!(
        table.contains("SALSA") && table.contains("+0.050 [+0.030, +0.070]") && table.contains("3 seeds"),
        "{table}"
    );
}

/// The documents quote two studies: every row of their tables, with the cells that the program prints from the kept
/// numbers.
#[test]
fn the_tables_in_the_documents_are_those_of_the_studies_that_are_kept() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
    for (numbers, page) in [("results/study.json", "paper.md"), ("results/study-grpo.json", "methods.md")] {
        let kept: StudyReport = serde_json::from_str(&read(numbers)).unwrap();
        let (table, text) = (study_table(&kept), read(page));
        assert!(table.lines().count() > 15, "{table}");
        let row = |line: &str| {
            let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rows: Vec<String> = table.lines().skip(1).filter(|line| !line.is_empty()).map(row).collect();
        let missing: Vec<&str> =
            rows.iter().map(String::as_str).filter(|row| !text.lines().any(|found| found == *row)).collect();
        assert!(missing.is_empty(), "docs/{page} lacks:\n{}", missing.join("\n"));
        for claim in &kept.claims {
            // Curves of reward against KL that do not overlap have no difference at equal KL.
            let seeds = claim.difference.as_ref().map_or(5, |over| over.seeds.len());
            assert!(seeds >= 5, "five seeds at least: {}", claim.claim);
            assert!(claim.difference.is_some() || claim.verdict == "cannot tell", "{}", claim.claim);
        }
    }
}
