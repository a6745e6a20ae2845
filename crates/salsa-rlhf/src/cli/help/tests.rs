use super::*;
use crate::stage::table::{STAGES, find};

#[test]
fn every_key_has_its_default_and_a_meaning_below_it() {
    for kind in STAGES {
        let (page, schema) = (keys(kind), (kind.schema)());
        for (key, default) in (kind.defaults)() {
            let entry = page
                .split("\n  --")
                .find(|entry| entry.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with([' ', '.'])));
            let entry = entry.unwrap_or_else(|| panic!("{}: {key} is not there", kind.name));
            let text: String = entry.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = schema["properties"][&key]["description"].as_str().unwrap();
            let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(&said), "{}: {key}: {text}", kind.name);
            let default = match &default {
                Value::Object(keys) if keys.contains_key(TAG) => &keys[TAG],
                default => default,
            };
            let shown = start(default, &said);
            assert!(text.contains(&shown) && shown.starts_with('['), "{}: {key}: {text}", kind.name);
        }
    }
}

#[test]
fn a_page_is_no_wider_than_a_terminal() {
    for kind in STAGES {
        for line in keys(kind).lines() {
            assert!(line.chars().count() <= WIDTH, "{}: {line}", kind.name);
        }
    }
}

#[test]
fn groups_of_keys_have_headings_in_the_order_of_the_keys() {
    let page = keys(find("ppo").unwrap());
    let headings: Vec<&str> =
        page.lines().filter_map(|line| line.strip_suffix(':')).filter(|line| !line.starts_with(' ')).collect();
    let expected =
        ["Models and data", "Batches and sampling", "Reward and KL", "PPO", "LoRA", "Optimizer", "Run and output"];
    assert_eq!(headings, expected);
    for kind in STAGES {
        assert!(keys(kind).starts_with('\n'), "{}: the first key has no heading", kind.name);
    }
}

#[test]
fn keys_of_mappings_are_dotted_and_told_once() {
    let page = keys(find("ppo").unwrap());
    for line in [
        "  --kl_coef <number> [default: 0.05] [also: beta, init_kl_coef]\n",
        "  --kl_estimator <k1|k2|k3> [default: k1]\n",
        "        k2: `(logp - ref)^2 / 2`: biased, small variance.\n",
        "  --reference.kind <sft|soup|ema|sync|multi|geometric|none> [default: sft]\n",
        "        soup: The weighted mean of SFT models: SALSA.\n",
        "  --reference.model <model> [default: none] [kind: sft]\n",
        "  --reference.models <list> [required] [kind: soup, multi, geometric]\n",
        "  --reference.weights <list> [default: empty] [kind: soup, multi, geometric]\n",
        "  --dataset.path <data> [required]\n",
        "  --dataset.split <train|validation|test|all|NAME|NAME[FROM:TO]> [default: none]\n",
        "  --dataset.max_samples <whole number> [default: none]\n",
        "  --dataset.seed <whole number> [default: none]\n",
        "  --model_name_or_path.models <list> [required]\n",
        "  --temperature <number> [default: 0.7]\n",
        "  --learning_rate <number> [default: 3e-6] [also: lr]\n",
        "  --kl_horizon <number> [default: 10000]\n",
        "  --score_clip <number> [default: none]\n",
    ] {
        assert_eq!(page.matches(line).count(), 1, "{line}{page}");
    }
    let page = keys(find("sft").unwrap());
    let eval = page.split("\n  --").find(|entry| entry.starts_with("eval_dataset ")).unwrap();
    assert!(eval.ends_with("\n      Its keys are those below dataset."), "{eval}");
    let page = keys(find("soup").unwrap());
    assert_eq!(page.matches("Its keys are those below density.").count(), 2, "of scale and of t: {page}");
    let page = keys(find("evaluate").unwrap());
    assert!(page.contains("\n  datasets[].name <text> "), "{page}");
}

#[test]
fn lines_are_filled_and_brackets_kept_whole() {
    let text = format!("--key <whole number> [default: {}] [also: one, two, three]", "x".repeat(30));
    assert_eq!(
        wrapped(&text, 2, 6),
        format!("  --key <whole number> [default: {}]\n      [also: one, two, three]\n", "x".repeat(30))
    );
    assert_eq!(wrapped("", 2, 6), "");
    assert_eq!(words("a [b c], <d e> f [g").collect::<Vec<_>>(), ["a", "[b c],", "<d e>", "f", "[g"]);
}
